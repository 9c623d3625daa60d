#include "io/pytorch/strided_read.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

/// The buffer: large enough that a transposed matrix is written in long pieces.
constexpr std::int64_t slab_bytes = std::int64_t{8} << 20;
/// Bytes that are read though nobody wants them rather than asking the system once more.
constexpr std::int64_t bridged_gap_bytes = std::int64_t{8} << 10;

/// One extent of a box: neighbours are `source` elements apart in the file and `target` elements in memory.
struct Axis {
  std::int64_t extent = 1;
  std::int64_t source = 0;
  std::int64_t target = 0;
};

std::int64_t sum_of_reaches(std::span<const Axis> axes, std::int64_t Axis::*stride) {
  std::int64_t result = 0;
  for (const auto& axis : axes) {
    result += (axis.extent - 1) * axis.*stride;
  }
  return result;
}

/// Calls visit(source, target) for the first element of each inner box.
template <class Visit>
void for_each_outer(std::span<const Axis> axes, std::int64_t source, std::int64_t target, Visit&& visit) {
  if (axes.empty()) {
    visit(source, target);
    return;
  }
  for (std::int64_t i = 0; i < axes[0].extent; ++i) {
    for_each_outer(axes.subspan(1), source + i * axes[0].source, target + i * axes[0].target, visit);
  }
}

/// Copies by tiles through a small array, so that each side is walked along its own near axis: strides that are powers
/// of two would otherwise put a tile's lines into the same few places of the cache.
template <std::size_t size>
void copy_plane(const Axis& rows, const Axis& cols, const std::byte* source, std::byte* target) {
  constexpr std::int64_t tile = 64;
  constexpr auto width = static_cast<std::int64_t>(size);
  std::array<std::byte, static_cast<std::size_t>(tile * tile * width)> kept;
  for (std::int64_t row = 0; row < rows.extent; row += tile) {
    const std::int64_t tile_rows = std::min(tile, rows.extent - row);
    for (std::int64_t col = 0; col < cols.extent; col += tile) {
      const std::int64_t tile_cols = std::min(tile, cols.extent - col);
      const std::byte* from = source + (row * rows.source + col * cols.source) * width;
      std::byte* to = target + (row * rows.target + col * cols.target) * width;
      for (std::int64_t j = 0; j < tile_cols; ++j) {
        for (std::int64_t i = 0; i < tile_rows; ++i) {
          std::memcpy(kept.data() + (i * tile + j) * width, from + (i * rows.source + j * cols.source) * width, size);
        }
      }
      for (std::int64_t i = 0; i < tile_rows; ++i) {
        for (std::int64_t j = 0; j < tile_cols; ++j) {
          std::memcpy(to + (i * rows.target + j * cols.target) * width, kept.data() + (i * tile + j) * width, size);
        }
      }
    }
  }
}

void copy_plane(std::int64_t element_bytes, const Axis& rows, const Axis& cols, const std::byte* source,
                std::byte* target) {
  if (cols.source == 1 && cols.target == 1) {
    for (std::int64_t i = 0; i < rows.extent; ++i) {
      std::memcpy(target + i * rows.target * element_bytes, source + i * rows.source * element_bytes,
                  static_cast<std::size_t>(cols.extent * element_bytes));
    }
    return;
  }
  switch (element_bytes) {
    case 1:
      return copy_plane<1>(rows, cols, source, target);
    case 2:
      return copy_plane<2>(rows, cols, source, target);
    case 4:
      return copy_plane<4>(rows, cols, source, target);
    default:
      return copy_plane<8>(rows, cols, source, target);
  }
}

/// Reads boxes: sets of elements that have one extent and stride along each axis.
class BoxReader {
 public:
  BoxReader(const File& file, std::int64_t base, std::int64_t element_bytes)
      : file_(file), base_(base), element_bytes_(element_bytes) {}

  /// @param axes    in any order
  /// @param source  the first element in the file, counted from the tensor's first
  void read(std::vector<Axis> axes, std::int64_t source, std::byte* target) {
    std::erase_if(axes, [](const Axis& axis) { return axis.extent == 1; });
    std::stable_sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.source > b.source; });

    // From the inside: as many axes as fit the buffer are read at once, and a part of the next one.
    const std::int64_t capacity = slab_bytes / element_bytes_;
    std::int64_t span = 1;            // elements from the first to the last of axes[whole..]
    std::size_t whole = axes.size();  // axes[whole..] are read in one piece
    bool is_apart = false;            // the indices of the next axis are pieces of their own
    std::int64_t part = 1;            // indices of the next axis that the buffer holds
    while (whole > 0) {
      const Axis& axis = axes[whole - 1];
      if ((axis.source - span) * element_bytes_ > bridged_gap_bytes) {
        is_apart = true;
        part = capacity / span;
        break;
      }
      if (axis.source > 0 && axis.extent - 1 > (capacity - span) / axis.source) {
        part = 1 + (capacity - span) / axis.source;
        break;
      }
      span += (axis.extent - 1) * axis.source;
      --whole;
    }
    if (whole == 0) {
      read_piece(axes, source, target);
      return;
    }
    const Axis split = axes[whole - 1];
    std::vector<Axis> inner(axes.begin() + static_cast<std::ptrdiff_t>(whole) - 1, axes.end());
    for_each_outer(std::span(axes).first(whole - 1), source, 0, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t i = 0; i < split.extent; i += part) {
        inner[0].extent = std::min(part, split.extent - i);
        const std::int64_t first = from + i * split.source;
        std::byte* const out = target + (to + i * split.target) * element_bytes_;
        if (is_apart) {
          read_pieces(inner, span, first, out);
        } else {
          read_piece(inner, first, out);
        }
      }
    });
  }

 private:
  void read_elements(std::int64_t source, std::int64_t count, std::byte* out) const {
    file_.read_exactly(base_ + source * element_bytes_, {out, static_cast<std::size_t>(count * element_bytes_)});
  }

  /// Reads what lies between the box's first and last element, and keeps the box. @param axes by falling source stride
  void read_piece(std::span<const Axis> axes, std::int64_t source, std::byte* target) {
    const std::int64_t span = sum_of_reaches(axes, &Axis::source) + 1;
    if (is_run(axes)) {
      read_elements(source, span, target);
      return;
    }
    grow_buffer(span);
    read_elements(source, span, buffer_.get());
    copy_box(axes, target);
  }

  /// The same with `span` elements read for each index of the first axis, and nothing of what lies between them.
  void read_pieces(std::vector<Axis> axes, std::int64_t span, std::int64_t source, std::byte* target) {
    const Axis pieces = axes[0];
    if (is_run(std::span(axes).subspan(1))) {
      for (std::int64_t i = 0; i < pieces.extent; ++i) {
        read_elements(source + i * pieces.source, span, target + i * pieces.target * element_bytes_);
      }
      return;
    }
    grow_buffer(pieces.extent * span);
    for (std::int64_t i = 0; i < pieces.extent; ++i) {
      read_elements(source + i * pieces.source, span, buffer_.get() + i * span * element_bytes_);
    }
    axes[0].source = span;
    copy_box(axes, target);
  }

  static bool is_run(std::span<const Axis> axes) {
    return axes.empty() || (axes.size() == 1 && axes[0].source == 1 && axes[0].target == 1);
  }

  void grow_buffer(std::int64_t elements) {
    if (elements > buffer_elements_) {
      buffer_ = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(elements * element_bytes_));
      buffer_elements_ = elements;
    }
  }

  /// Copies a box from the buffer, where its source strides count. @param axes by falling source stride
  void copy_box(std::span<const Axis> axes, std::byte* target) {
    // The plane of the axis that is nearest in the file and the one that is nearest in memory; loops over the others.
    std::vector<Axis> outer(axes.begin(), axes.end());
    const auto by_target = [](const Axis& a, const Axis& b) { return a.target < b.target; };
    const auto nearest = std::min_element(outer.begin(), outer.end(), by_target);
    const Axis cols = *nearest;
    outer.erase(nearest);
    Axis rows;
    if (!outer.empty()) {
      rows = outer.back();
      outer.pop_back();
    }
    for_each_outer(outer, 0, 0, [&](std::int64_t from, std::int64_t to) {
      copy_plane(element_bytes_, rows, cols, buffer_.get() + from * element_bytes_, target + to * element_bytes_);
    });
  }

  const File& file_;
  std::int64_t base_;
  std::int64_t element_bytes_;
  std::unique_ptr<std::byte[]> buffer_;
  std::int64_t buffer_elements_ = 0;
};

/// The tensor's axes with dense targets, outermost first; extents of 1 are gone, neighbours that lie as one are one.
std::vector<Axis> merged_axes(const TensorInfo& info) {
  std::vector<Axis> axes;
  for (std::size_t i = 0; i < info.shape.size(); ++i) {
    const Axis axis{.extent = info.shape[i], .source = info.strides[i]};
    if (axis.extent == 1) {
      continue;
    }
    if (!axes.empty() && axes.back().source == axis.extent * axis.source) {
      axes.back() = {.extent = axes.back().extent * axis.extent, .source = axis.source};
    } else {
      axes.push_back(axis);
    }
  }
  std::int64_t target = 1;
  for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
    axis->target = target;
    target *= axis->extent;
  }
  return axes;
}

/// Reads elements [begin, end) of the dense form of `axes`: a box, and what is left before and behind it along the
/// outermost axis, which are ranges with one axis less.
void read_elements(BoxReader& reader, std::span<const Axis> axes, std::int64_t source, std::int64_t begin,
                   std::int64_t end, std::byte* target, std::int64_t element_bytes) {
  if (begin == end) {
    return;
  }
  if (axes.empty()) {
    reader.read({}, source, target);
    return;
  }
  const Axis& axis = axes[0];
  const std::int64_t inner = axis.target;  // elements of one index
  const auto part = [&](std::int64_t index, std::int64_t from, std::int64_t to) {
    read_elements(reader, axes.subspan(1), source + index * axis.source, from, to,
                  target + (index * inner + from - begin) * element_bytes, element_bytes);
  };
  std::int64_t first = begin / inner;
  const std::int64_t last = end / inner;
  if (first == last) {
    part(first, begin % inner, end % inner);
    return;
  }
  if (begin % inner != 0) {
    part(first, begin % inner, inner);
    ++first;
  }
  if (first < last) {
    std::vector<Axis> box(axes.begin(), axes.end());
    box[0].extent = last - first;
    reader.read(std::move(box), source + first * axis.source, target + (first * inner - begin) * element_bytes);
  }
  part(last, 0, end % inner);
}

}  // namespace

void read_strided(const File& file, const TensorInfo& info, std::int64_t offset, std::span<std::byte> out) {
  require(info.strides.size() == info.shape.size(), "strided tensor: shape and strides differ in length");
  if (out.empty()) {
    return;
  }
  const std::int64_t width = size_of(info.dtype);
  const std::vector<Axis> axes = merged_axes(info);
  BoxReader reader(file, info.offset, width);

  // Elements that the range cuts go through a buffer of their own.
  const auto read_cut = [&](std::int64_t element, std::int64_t skipped, std::span<std::byte> part) {
    std::array<std::byte, 8> whole{};
    read_elements(reader, axes, 0, element, element + 1, whole.data(), width);
    std::memcpy(part.data(), whole.data() + skipped, part.size());
  };
  std::int64_t done = 0;
  if (const std::int64_t skipped = offset % width; skipped != 0) {
    done = std::min(width - skipped, std::ssize(out));
    read_cut(offset / width, skipped, out.first(static_cast<std::size_t>(done)));
  }
  const std::int64_t begin = (offset + done) / width;
  const std::int64_t count = (std::ssize(out) - done) / width;
  read_elements(reader, axes, 0, begin, begin + count, out.data() + done, width);
  done += count * width;
  if (done < std::ssize(out)) {
    read_cut(begin + count, 0, out.subspan(static_cast<std::size_t>(done)));
  }
}

}  // namespace gptqd::io
