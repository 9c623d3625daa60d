#include "kernels/activation.hpp"

namespace gptqd {

std::string_view name_of(Activation activation) {
  switch (activation) {
    case Activation::relu:
      return "relu";
    case Activation::silu:
      return "silu";
    case Activation::gelu_tanh:
      return "gelu_tanh";
    case Activation::none:
      break;
  }
  return "none";
}

}  // namespace gptqd
