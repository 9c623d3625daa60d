#include "pipeline/phase_inputs.hpp"

#include <algorithm>

#include "kernels/transfer_ring.hpp"

namespace gptqd::pipeline {

namespace {

std::int64_t all_rows(std::span<const MicroBatch> batches) {
  return batches.empty() ? 0 : batches.back().row + batches.back().rows;
}

class ResidentInputs final : public PhaseInputs {
 public:
  explicit ResidentInputs(const PhaseInputsContext& context) : context_(context) {
    const std::int64_t rows = all_rows(context.batches);
    const auto buffer = [&](std::int64_t width) {
      return context.backend.allocate(rows * width * size_of(context.dtype));
    };
    narrow_ = buffer(context.widths.narrow);
    wide_ = buffer(context.widths.wide);
  }

  void advance(const BlockSpec& block, std::optional<Phase> before, std::optional<Phase> phase,
               const Compute& compute) override {
    for (const auto& batch : context_.batches) {
      compute(batch, before ? ConstAnyView<2>(place(block, *before, batch)) : ConstAnyView<2>(),
              phase ? place(block, *phase, batch) : AnyView<2>());
    }
  }

  AnyView<2> place(const BlockSpec& block, Phase phase, const MicroBatch& batch) const override {
    const std::int64_t width = block.input_width(phase);
    const Buffer& buffer = is_wide(phase) ? wide_ : narrow_;
    return buffer.any_view<2>(context_.dtype, {batch.rows, width}, batch.row * width * size_of(context_.dtype));
  }

  Stream* upload() override { return nullptr; }

 private:
  PhaseInputsContext context_;
  Buffer narrow_;
  Buffer wide_;
};

class ParkedInputs final : public PhaseInputs {
 public:
  explicit ParkedInputs(const PhaseInputsContext& context)
      : context_(context),
        parked_(context.backend.allocate_host(all_rows(context.batches) * context.widths.widest() *
                                              size_of(context.dtype))),
        upload_(context.backend.create_stream()),
        download_(context.backend.create_stream()) {
    for (const auto& batch : context.batches) {
      most_rows_ = std::max(most_rows_, batch.rows);
    }
  }

  ~ParkedInputs() override {
    for (auto* stream : {upload_.get(), download_.get()}) {
      try {
        stream->synchronize();  // the transfers use host memory of this
      } catch (...) {
        // What failed has been reported, or will be, by the stream of the forward pass.
      }
    }
  }
  ParkedInputs(const ParkedInputs&) = delete;
  ParkedInputs& operator=(const ParkedInputs&) = delete;

  void advance(const BlockSpec& block, std::optional<Phase> before, std::optional<Phase> phase,
               const Compute& compute) override {
    const auto slot_bytes = [&](std::optional<Phase> of) {
      return of ? most_rows_ * block.input_width(*of) * size_of(context_.dtype) : 0;
    };
    UploadRing previous(context_.backend, context_.stream, *upload_, slot_bytes(before));
    DownloadRing inputs(context_.backend, context_.stream, *download_, slot_bytes(phase));
    for (const auto& batch : context_.batches) {
      ConstAnyView<2> from;
      AnyView<2> to;
      if (before) {
        const auto parked = place(block, *before, batch);
        const HostPart part{.data = parked.data, .bytes = parked.bytes()};
        from = {previous.bring({&part, 1}), parked.dtype, parked.shape};
      }
      const auto parked = phase ? place(block, *phase, batch) : AnyView<2>();
      if (phase) {
        to = {inputs.next(), parked.dtype, parked.shape};
      }
      compute(batch, from, to);
      if (before) {
        previous.release();
      }
      if (phase) {
        // Over the input of the phase before, which was on the device for this.
        inputs.send(parked.data, parked.bytes());
      }
    }
    upload_->wait(download_->record());
  }

  AnyView<2> place(const BlockSpec& block, Phase phase, const MicroBatch& batch) const override {
    return parked_.any_view<2>(context_.dtype, {batch.rows, block.input_width(phase)},
                               batch.row * context_.widths.widest() * size_of(context_.dtype));
  }

  Stream* upload() override { return upload_.get(); }

 private:
  PhaseInputsContext context_;
  Buffer parked_;
  std::unique_ptr<Stream> upload_;
  std::unique_ptr<Stream> download_;
  std::int64_t most_rows_ = 0;
};

}  // namespace

std::unique_ptr<PhaseInputs> make_phase_inputs(Activations where, const PhaseInputsContext& context) {
  if (where == Activations::parked) {
    return std::make_unique<ParkedInputs>(context);
  }
  return std::make_unique<ResidentInputs>(context);
}

}  // namespace gptqd::pipeline
