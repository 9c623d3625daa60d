#pragma once
/// @file The nonlinearities of MLPs.
#include <cstdint>
#include <string_view>

namespace gptqd {

/// relu(x) = max(x, 0);  silu(x) = x·σ(x);
/// gelu_tanh(x) = x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) = x·σ(2·√(2/π)·(x + 0.044715·x³)).
enum class Activation : std::uint8_t { none, relu, silu, gelu_tanh };

/// "none", "relu", "silu", "gelu_tanh".
std::string_view name_of(Activation activation);

}  // namespace gptqd
