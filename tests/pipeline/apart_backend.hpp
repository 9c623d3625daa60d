#pragma once
/// @file A CPU backend whose host memory counts apart from its device memory, as a GPU's does.
#include <iterator>
#include <map>
#include <memory>

#include "kernels/backend.hpp"

namespace gptqd::pipeline::test {

/// Computes on the CPU. Refuses to compute on memory of allocate_host(), and joins micro-batches for XᵀX.
class ApartBackend final : public Backend {
 public:
  explicit ApartBackend(std::int64_t gram_tokens) : gram_tokens_(gram_tokens) {}

  std::int64_t peak_host_bytes() const { return host_->peak_bytes(); }

  MemoryKind memory_kind() const override { return MemoryKind::host; }  // of the memory that ranks exchange
  PieceSizes preferred_pieces() const override {
    auto pieces = device_->preferred_pieces();
    pieces.gram_tokens = gram_tokens_;
    return pieces;
  }
  std::string describe() const override { return device_->describe(); }
  DType compute_dtype(DType model) const override { return device_->compute_dtype(model); }
  Buffer allocate(std::int64_t bytes) override { return device_->allocate(bytes); }
  Buffer allocate_host(std::int64_t bytes) override {
    Buffer buffer = host_->allocate(bytes);
    if (buffer) {
      hosts_[static_cast<const std::byte*>(buffer.data())] = bytes;
    }
    return buffer;
  }
  std::int64_t bytes_in_use() const override { return device_->bytes_in_use(); }
  std::int64_t peak_bytes() const override { return device_->peak_bytes(); }
  std::unique_ptr<Stream> create_stream() override { return device_->create_stream(); }
  std::unique_ptr<Stream> create_background_stream() override { return nullptr; }
  void copy_to_device(Stream& stream, void* device, const void* host, std::int64_t bytes) override {
    expect_device(device);
    device_->copy_to_device(stream, device, host, bytes);
  }
  void copy_to_host(Stream& stream, void* host, const void* device, std::int64_t bytes) override {
    expect_device(device);
    device_->copy_to_host(stream, host, device, bytes);
  }
  void copy(Stream& stream, void* to, const void* from, std::int64_t bytes) override {
    expect_device(to);
    expect_device(from);
    device_->copy(stream, to, from, bytes);
  }
  void fill_zero(Stream& stream, void* device, std::int64_t bytes) override {
    expect_device(device);
    device_->fill_zero(stream, device, bytes);
  }

 protected:
  void run(Stream& stream, const LinearArgs& args) override {
    expect_device(args.x.data);
    expect_device(args.y.data);
    device_->linear(stream, args);
  }
  void run(Stream& stream, const LayerNormArgs& args) override {
    expect_device(args.y.data);
    device_->layer_norm(stream, args);
  }
  void run(Stream& stream, const RmsNormArgs& args) override { device_->rms_norm(stream, args); }
  void run(Stream& stream, const RotaryArgs& args) override { device_->rotary(stream, args); }
  void run(Stream& stream, const GatedActivationArgs& args) override { device_->gated_activation(stream, args); }
  void run(Stream& stream, const AttentionArgs& args) override {
    expect_device(args.out.data);
    device_->attention(stream, args);
  }
  void run(Stream& stream, const EmbeddingArgs& args) override { device_->embedding(stream, args); }
  void run(Stream& stream, const CrossEntropyArgs& args) override { device_->cross_entropy(stream, args); }
  void run(Stream& stream, const AddArgs& args) override { device_->add(stream, args); }
  void run(Stream& stream, const ConvertArgs& args) override {
    expect_device(args.x.data);
    device_->convert(stream, args);
  }
  void run(Stream& stream, const GatherColumnsArgs& args) override {
    expect_device(args.x.data);
    device_->gather_columns(stream, args);
  }
  void run(Stream& stream, const ColumnSquareSumsArgs& args) override {
    expect_device(args.x.data);
    device_->column_square_sums(stream, args);
  }
  void run(Stream& stream, const GramPanelArgs& args) override {
    expect_device(args.x.data);
    device_->gram_panel(stream, args);
  }
  void run(Stream& stream, const GetDiagonalArgs& args) override { device_->get_diagonal(stream, args); }
  void run(Stream& stream, const SetDiagonalArgs& args) override { device_->set_diagonal(stream, args); }
  void run(Stream& stream, const GatherGroupBlocksArgs& args) override { device_->gather_group_blocks(stream, args); }
  void run(Stream& stream, const FactorPanelArgs& args) override { device_->factor_panel(stream, args); }
  void run(Stream& stream, const UpdatePanelArgs& args) override { device_->update_panel(stream, args); }
  void run(Stream& stream, const FindGridsArgs& args) override { device_->find_grids(stream, args); }
  void run(Stream& stream, const RoundToGridsArgs& args) override { device_->round_to_grids(stream, args); }
  void run(Stream& stream, const SolvePanelArgs& args) override { device_->solve_panel(stream, args); }
  void run(Stream& stream, const WeightedNormsArgs& args) override { device_->weighted_norms(stream, args); }
  void run(Stream& stream, const RowStatisticsArgs& args) override { device_->row_statistics(stream, args); }
  void run(Stream& stream, const ObqArgs& args) override { device_->obq(stream, args); }
  void run(Stream& stream, const PackRowsArgs& args) override { device_->pack_rows(stream, args); }
  void run(Stream& stream, const TransposeWordsArgs& args) override { device_->transpose_words(stream, args); }
  void run(Stream& stream, const DequantizeArgs& args) override { device_->dequantize(stream, args); }

 private:
  void expect_device(const void* data) const {
    const auto* const byte = static_cast<const std::byte*>(data);
    const auto next = hosts_.upper_bound(byte);
    require(next == hosts_.begin() || byte >= std::prev(next)->first + std::prev(next)->second,
            "work on the device got host memory");
  }

  std::int64_t gram_tokens_;
  std::unique_ptr<Backend> device_ = make_cpu_backend({.threads = 1});
  std::unique_ptr<Backend> host_ = make_cpu_backend({.threads = 1});
  std::map<const std::byte*, std::int64_t> hosts_;  // those given back as well: the host's arena keeps them
};

}  // namespace gptqd::pipeline::test
