#include "io/pytorch/unpickler.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "io/checkpoint_reader.hpp"
#include "io/pytorch/quoted_text.hpp"
#include "io/tokenizer/utf8.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

constexpr std::int64_t most_extents = 16;  // bounds what a tensor of a few bytes in the pickle can cost; weights have 5

/// The classes and functions that a pickle may name.
enum class Global : std::uint8_t {
  ordered_dict,
  rebuild_tensor_v2,
  rebuild_tensor_v3,
  rebuild_parameter,
  rebuild_parameter_with_state,
  typed_storage,
  untyped_storage,
  dtype,
};

struct KnownGlobal {
  std::string_view module;
  std::string_view name;
  Global global;
  DType dtype = DType::u8;
};

constexpr std::array known_globals{
    KnownGlobal{"collections", "OrderedDict", Global::ordered_dict},
    KnownGlobal{"torch._utils", "_rebuild_tensor_v2", Global::rebuild_tensor_v2},
    KnownGlobal{"torch._utils", "_rebuild_tensor_v3", Global::rebuild_tensor_v3},
    KnownGlobal{"torch._utils", "_rebuild_parameter", Global::rebuild_parameter},
    KnownGlobal{"torch._utils", "_rebuild_parameter_with_state", Global::rebuild_parameter_with_state},
    KnownGlobal{"torch.storage", "UntypedStorage", Global::untyped_storage},
    KnownGlobal{"torch", "DoubleStorage", Global::typed_storage, DType::f64},
    KnownGlobal{"torch", "FloatStorage", Global::typed_storage, DType::f32},
    KnownGlobal{"torch", "HalfStorage", Global::typed_storage, DType::f16},
    KnownGlobal{"torch", "BFloat16Storage", Global::typed_storage, DType::bf16},
    KnownGlobal{"torch", "LongStorage", Global::typed_storage, DType::i64},
    KnownGlobal{"torch", "IntStorage", Global::typed_storage, DType::i32},
    KnownGlobal{"torch", "ShortStorage", Global::typed_storage, DType::i16},
    KnownGlobal{"torch", "CharStorage", Global::typed_storage, DType::i8},
    KnownGlobal{"torch", "ByteStorage", Global::typed_storage, DType::u8},
    KnownGlobal{"torch", "BoolStorage", Global::typed_storage, DType::boolean},
    KnownGlobal{"torch", "uint64", Global::dtype, DType::u64},
    KnownGlobal{"torch", "uint32", Global::dtype, DType::u32},
    KnownGlobal{"torch", "uint16", Global::dtype, DType::u16},
};

/// Opcodes that are refused, for the message.
struct RefusedOpcode {
  unsigned char code;
  std::string_view name;
};
constexpr std::array refused_opcodes{
    RefusedOpcode{'F', "FLOAT"},
    RefusedOpcode{'I', "INT"},
    RefusedOpcode{'L', "LONG"},
    RefusedOpcode{'P', "PERSID"},
    RefusedOpcode{'S', "STRING"},
    RefusedOpcode{'T', "BINSTRING"},
    RefusedOpcode{'U', "SHORT_BINSTRING"},
    RefusedOpcode{'V', "UNICODE"},
    RefusedOpcode{'g', "GET"},
    RefusedOpcode{'i', "INST"},
    RefusedOpcode{'o', "OBJ"},
    RefusedOpcode{'p', "PUT"},
    RefusedOpcode{0x81, "NEWOBJ"},
    RefusedOpcode{0x82, "EXT1"},
    RefusedOpcode{0x83, "EXT2"},
    RefusedOpcode{0x84, "EXT4"},
    RefusedOpcode{0x8f, "EMPTY_SET"},
    RefusedOpcode{0x90, "ADDITEMS"},
    RefusedOpcode{0x91, "FROZENSET"},
    RefusedOpcode{0x92, "NEWOBJ_EX"},
    RefusedOpcode{0x96, "BYTEARRAY8"},
    RefusedOpcode{0x97, "NEXT_BUFFER"},
    RefusedOpcode{0x98, "READONLY_BUFFER"},
};

/// A stack machine whose values are numbers into tables: no value owns another, so neither cycles nor deep nesting cost
/// anything, and every table grows by a bounded amount for each byte of the pickle.
class Unpickler {
 public:
  Unpickler(std::span<const std::byte> pickle, std::string_view file_name) : pickle_(pickle), file_name_(file_name) {}

  std::vector<PickledTensor> state_dict() {
    run();
    const Value& root = values_[pop()];
    if (root.kind != Kind::dict) {
      fail(fmt::format("the file holds {}, expected a dict from names to tensors; save model.state_dict() alone",
                       text_of(root)));
    }
    std::vector<PickledTensor> result;
    if (root.first < 0) {
      return result;
    }
    std::unordered_set<std::string_view> names;
    const std::vector<Id>& items = dicts_[static_cast<std::size_t>(root.first)];
    for (std::size_t i = 0; i < items.size(); i += 2) {
      const Value& key = values_[items[i]];
      const Value& value = values_[items[i + 1]];
      if (key.kind != Kind::text) {
        fail(fmt::format("the dict has {} among its keys, expected names of tensors; save model.state_dict() alone",
                         text_of(key)));
      }
      const std::string_view name = view_of(key);
      if (!is_valid_utf8(name)) {
        fail(fmt::format("the name {} is not UTF-8", quoted_text(name)));
      }
      if (value.kind != Kind::tensor) {
        fail(
            fmt::format("{} is {}, expected a tensor; save model.state_dict() alone, without other entries or dicts "
                        "around it",
                        quoted_text(name), text_of(value)));
      }
      if (!names.insert(name).second) {
        fail(fmt::format("the name {} occurs twice", quoted_text(name)));
      }
      result.push_back(view(name, tensors_[static_cast<std::size_t>(value.first)]));
    }
    return result;
  }

 private:
  using Id = std::uint32_t;
  enum class Kind : std::uint8_t {
    none,
    boolean,
    integer,
    real,
    text,
    bytes,
    tuple,
    list,
    dict,
    global,
    storage,
    tensor
  };

  /// What `first` and `second` mean: boolean, integer: the number; text: begin and length in the pickle; tuple: begin
  /// and count in children_; dict: its items in dicts_, -1 while it has none; global: Global and DType; storage,
  /// tensor: its place in storages_, tensors_. Contents of lists, bytes and floats are nowhere needed and not kept.
  struct Value {
    Kind kind = Kind::none;
    std::int64_t first = 0;
    std::int64_t second = 0;
  };
  struct Storage {
    std::optional<DType> dtype;  // none: bytes
    Value key;
    std::int64_t elements = 0;
  };
  struct Tensor {
    std::size_t storage = 0;
    DType dtype = DType::f32;
    std::int64_t offset = 0;
    Value shape;
    Value strides;
  };

  [[noreturn]] void fail(const std::string& offence) const {
    throw Error(ErrorKind::input, fmt::format("{}: the pickle of the weights: {}", file_name_, offence));
  }
  [[noreturn]] void fail_damaged(std::string_view offence) const {
    fail(fmt::format("{} at byte {}; it is damaged: download the file again", offence, opcode_));
  }

  // The pickle's bytes.

  std::size_t left() const { return pickle_.size() - position_; }

  std::size_t take(std::uint64_t count) {
    if (count > left()) {
      fail_damaged(fmt::format("it ends after {} bytes, inside the opcode", pickle_.size()));
    }
    position_ += static_cast<std::size_t>(count);
    return position_ - static_cast<std::size_t>(count);
  }

  /// An unsigned little-endian number of `bytes` bytes, at most 8.
  std::uint64_t take_number(std::size_t bytes) {
    const std::size_t begin = take(bytes);
    std::uint64_t number = 0;
    std::memcpy(&number, pickle_.data() + begin, bytes);
    return number;
  }

  std::string_view take_line() {
    const auto* begin = reinterpret_cast<const char*>(pickle_.data()) + position_;
    const auto* end = static_cast<const char*>(left() == 0 ? nullptr : std::memchr(begin, '\n', left()));
    if (end == nullptr) {
      fail_damaged("a line without an end");
    }
    position_ += static_cast<std::size_t>(end - begin) + 1;
    return {begin, end};
  }

  std::string_view view_of(const Value& text) const {
    return {reinterpret_cast<const char*>(pickle_.data()) + text.first, static_cast<std::size_t>(text.second)};
  }

  // The stack and the memo.

  void push(Id id) { stack_.push_back(id); }
  void push(Value value) {
    values_.push_back(value);
    push(static_cast<Id>(values_.size() - 1));
  }

  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }

  Id top() const {
    if (stack_.size() <= floor()) {
      fail_damaged("the stack is empty");
    }
    return stack_.back();
  }
  Id pop() {
    const Id id = top();
    stack_.pop_back();
    return id;
  }
  /// Where the values above the last mark begin; the mark is gone.
  std::size_t pop_mark() {
    if (marks_.empty()) {
      fail_damaged("a mark is missing");
    }
    const std::size_t begin = marks_.back();
    marks_.pop_back();
    return begin;
  }

  void remember(std::uint64_t slot) { memo_.insert_or_assign(static_cast<std::uint32_t>(slot), top()); }
  void recall(std::uint64_t slot) {
    const auto found = memo_.find(static_cast<std::uint32_t>(slot));
    if (found == memo_.end()) {
      fail_damaged(fmt::format("the memo has no value {}", slot));
    }
    push(found->second);
  }

  void push_text(std::uint64_t length) {
    const std::size_t begin = take(length);
    push({Kind::text, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(length)});
  }

  /// The values from `begin` to the stack's top become one tuple.
  void push_tuple(std::size_t begin) {
    if (begin > stack_.size() || begin < floor()) {
      fail_damaged("the stack is empty");
    }
    const Value tuple{Kind::tuple, static_cast<std::int64_t>(children_.size()),
                      static_cast<std::int64_t>(stack_.size() - begin)};
    children_.insert(children_.end(), stack_.begin() + static_cast<std::ptrdiff_t>(begin), stack_.end());
    stack_.resize(begin);
    push(tuple);
  }
  void push_short_tuple(std::size_t count) {
    if (stack_.size() < count) {
      fail_damaged("the stack is empty");
    }
    push_tuple(stack_.size() - count);
  }

  std::span<const Id> children(const Value& tuple) const {
    return std::span(children_).subspan(static_cast<std::size_t>(tuple.first), static_cast<std::size_t>(tuple.second));
  }
  const Value& child(const Value& tuple, std::size_t index) const { return values_[children(tuple)[index]]; }

  /// Puts the values from `begin` to the stack's top, keys and values in turn, into the dict below them.
  void set_items(std::size_t begin) {
    if ((stack_.size() - begin) % 2 != 0) {
      fail_damaged("a key without a value");
    }
    const std::vector<Id> items(stack_.begin() + static_cast<std::ptrdiff_t>(begin), stack_.end());
    stack_.resize(begin);
    Value& dict = values_[top()];
    if (dict.kind != Kind::dict) {
      fail_damaged(fmt::format("items for {}, expected a dict", text_of(dict)));
    }
    if (items.empty()) {
      return;
    }
    if (dict.first < 0) {
      dict.first = static_cast<std::int64_t>(dicts_.size());
      dicts_.emplace_back();
    }
    auto& all = dicts_[static_cast<std::size_t>(dict.first)];
    all.insert(all.end(), items.begin(), items.end());
  }

  void append_to_list() {
    if (values_[top()].kind != Kind::list) {
      fail_damaged(fmt::format("items for {}, expected a list", text_of(values_[top()])));
    }
  }

  // Functions and classes.

  void push_global(std::string_view module, std::string_view name) {
    for (const auto& known : known_globals) {
      if (known.module == module && known.name == name) {
        push({Kind::global, static_cast<std::int64_t>(known.global), static_cast<std::int64_t>(known.dtype)});
        return;
      }
    }
    fail(
        fmt::format("it wants to call {} at byte {}; refused: only plain tensors are read, and no code of a checkpoint "
                    "is ever run. If you trust where it comes from, load it with torch and save it as safetensors",
                    quoted_text(fmt::format("{}.{}", module.substr(0, 100), name.substr(0, 100))), opcode_));
  }

  void push_stack_global() {
    const Value& name = values_[pop()];
    const Value& module = values_[pop()];
    if (name.kind != Kind::text || module.kind != Kind::text) {
      fail_damaged(fmt::format("a function called {}.{}, expected two names", text_of(module), text_of(name)));
    }
    push_global(view_of(module), view_of(name));
  }

  static bool is(const Value& value, Global global) {
    return value.kind == Kind::global && static_cast<Global>(value.first) == global;
  }

  /// The storage that a persistent id names: ("storage", type, key, location, elements).
  void push_storage() {
    const Value& id = values_[pop()];
    constexpr std::string_view expected = "expected (\"storage\", type, key, location, elements)";
    if (id.kind != Kind::tuple || id.second < 5) {
      fail_damaged(fmt::format("a persistent id that is {}, {}", text_of(id), expected));
    }
    const Value& word = child(id, 0);
    const Value& type = child(id, 1);
    const Value& key = child(id, 2);
    const Value& elements = child(id, 4);
    const bool typed = is(type, Global::typed_storage);
    if (word.kind != Kind::text || view_of(word) != "storage" || (!typed && !is(type, Global::untyped_storage)) ||
        key.kind != Kind::text || elements.kind != Kind::integer || elements.first < 0) {
      fail_damaged(fmt::format("a persistent id that is no storage, {}", expected));
    }
    storages_.push_back({.dtype = typed ? std::optional(static_cast<DType>(type.second)) : std::nullopt,
                         .key = key,
                         .elements = elements.first});
    push({Kind::storage, static_cast<std::int64_t>(storages_.size() - 1), 0});
  }

  void call() {
    const Value arguments = values_[pop()];
    const Value function = values_[pop()];
    if (function.kind != Kind::global || arguments.kind != Kind::tuple) {
      fail_damaged(fmt::format("a call of {} with {}", text_of(function), text_of(arguments)));
    }
    switch (static_cast<Global>(function.first)) {
      case Global::ordered_dict:
        expect_arguments(arguments, 0, 0, "OrderedDict");
        push({Kind::dict, -1, 0});
        return;
      case Global::rebuild_tensor_v2:
        expect_arguments(arguments, 6, 7, "_rebuild_tensor_v2");
        expect_plain(arguments, 6);
        push_tensor(arguments, std::nullopt);
        return;
      case Global::rebuild_tensor_v3: {
        expect_arguments(arguments, 7, 8, "_rebuild_tensor_v3");
        expect_plain(arguments, 7);
        const Value& dtype = child(arguments, 6);
        if (!is(dtype, Global::dtype)) {
          fail_damaged(fmt::format("_rebuild_tensor_v3 with {} for a dtype", text_of(dtype)));
        }
        push_tensor(arguments, static_cast<DType>(dtype.second));
        return;
      }
      case Global::rebuild_parameter:
        expect_arguments(arguments, 3, 3, "_rebuild_parameter");
        push_parameter(arguments);
        return;
      case Global::rebuild_parameter_with_state:
        expect_arguments(arguments, 4, 4, "_rebuild_parameter_with_state");
        push_parameter(arguments);
        return;
      case Global::typed_storage:
      case Global::untyped_storage:
      case Global::dtype:
        fail_damaged("a call of a type of storages or elements");
    }
  }

  void expect_arguments(const Value& arguments, std::int64_t least, std::int64_t most, std::string_view function) {
    if (arguments.second < least || arguments.second > most) {
      fail_damaged(fmt::format("{} with {} arguments, expected {}", function, arguments.second, least));
    }
  }

  /// The optional last argument says that a tensor is stored negated or conjugated.
  void expect_plain(const Value& arguments, std::size_t metadata) {
    if (children(arguments).size() <= metadata) {
      return;
    }
    const Value& value = child(arguments, metadata);
    if (value.kind != Kind::none && (value.kind != Kind::dict || value.first >= 0)) {
      fail(
          fmt::format("a tensor with metadata (stored negated or conjugated) at byte {}; call .contiguous() on it "
                      "before saving",
                      opcode_));
    }
  }

  /// (storage, offset, shape, strides, ...)
  void push_tensor(const Value& arguments, std::optional<DType> dtype) {
    const Value& storage = child(arguments, 0);
    const Value& offset = child(arguments, 1);
    const Value& shape = child(arguments, 2);
    const Value& strides = child(arguments, 3);
    if (storage.kind != Kind::storage || offset.kind != Kind::integer || !is_extents(shape) || !is_extents(strides)) {
      fail_damaged(fmt::format("a tensor made of {}, {}, {}, {}; expected a storage, its offset, shape and strides",
                               text_of(storage), text_of(offset), text_of(shape), text_of(strides)));
    }
    if (shape.second != strides.second) {
      fail_damaged(fmt::format("a tensor with {} extents, but {} strides", shape.second, strides.second));
    }
    const auto place = static_cast<std::size_t>(storage.first);
    if (dtype.has_value() == storages_[place].dtype.has_value()) {
      fail_damaged("a tensor whose elements have no type or two");
    }
    tensors_.push_back({.storage = place,
                        .dtype = dtype ? *dtype : *storages_[place].dtype,
                        .offset = offset.first,
                        .shape = shape,
                        .strides = strides});
    push({Kind::tensor, static_cast<std::int64_t>(tensors_.size() - 1), 0});
  }

  void push_parameter(const Value& arguments) {
    const Value tensor = child(arguments, 0);
    if (tensor.kind != Kind::tensor) {
      fail_damaged(fmt::format("a parameter made of {}, expected a tensor", text_of(tensor)));
    }
    push(tensor);
  }

  bool is_extents(const Value& value) const {
    if (value.kind != Kind::tuple) {
      return false;
    }
    // Before the loop: many tensors may share one huge tuple.
    if (value.second > most_extents) {
      fail(fmt::format("a tensor of {} dimensions at byte {}, more than {}", value.second, opcode_, most_extents));
    }
    const auto all = children(value);
    return std::all_of(all.begin(), all.end(), [&](Id id) { return values_[id].kind == Kind::integer; });
  }

  std::vector<std::int64_t> numbers(const Value& tuple) const {
    std::vector<std::int64_t> result;
    for (const Id id : children(tuple)) {
      result.push_back(values_[id].first);
    }
    return result;
  }

  /// The tensor of that name, checked to lie inside its storage.
  PickledTensor view(std::string_view name, const Tensor& tensor) const {
    const Storage& storage = storages_[tensor.storage];
    PickledTensor result{.name = std::string(name),
                         .dtype = tensor.dtype,
                         .shape = numbers(tensor.shape),
                         .strides = numbers(tensor.strides),
                         .offset = tensor.offset,
                         .storage_key = std::string(view_of(storage.key))};
    const auto refuse = [&](std::string_view offence) {
      fail(fmt::format("tensor {}, shape [{}], strides [{}], offset {} in a storage of {} elements: {}",
                       quoted_text(name), fmt::join(result.shape, ", "), fmt::join(result.strides, ", "), result.offset,
                       storage.elements, offence));
    };
    const auto negative = [](std::int64_t number) { return number < 0; };
    if (result.offset < 0 || std::any_of(result.shape.begin(), result.shape.end(), negative) ||
        std::any_of(result.strides.begin(), result.strides.end(), negative)) {
      refuse("a negative number; the file is damaged");
    }
    if (__builtin_mul_overflow(storage.elements, size_of(storage.dtype.value_or(DType::u8)), &result.storage_bytes)) {
      refuse("the storage's size overflows 63 bits; the file is damaged");
    }
    const auto bytes = dense_bytes(result.shape, tensor.dtype);
    if (!bytes) {
      refuse("the shape overflows 63 bits; the file is damaged");
    }
    if (*bytes == 0) {
      return result;
    }
    std::int64_t end = result.offset;
    bool overflows = false;
    for (std::size_t i = 0; i < result.shape.size(); ++i) {
      std::int64_t reach = 0;
      overflows = overflows || __builtin_mul_overflow(result.shape[i] - 1, result.strides[i], &reach) ||
                  __builtin_add_overflow(end, reach, &end);
    }
    if (overflows || end >= result.storage_bytes / size_of(tensor.dtype)) {
      refuse("it reaches outside its storage; the file is damaged");
    }
    if (*bytes > result.storage_bytes) {
      refuse("an expanded view, larger than its storage; call .contiguous() on it before saving");
    }
    return result;
  }

  std::string text_of(const Value& value) const {
    switch (value.kind) {
      case Kind::none:
        return "None";
      case Kind::boolean:
        return value.first != 0 ? "True" : "False";
      case Kind::integer:
        return fmt::format("{}", value.first);
      case Kind::real:
        return "a float";
      case Kind::text:
        return quoted_text(view_of(value));
      case Kind::bytes:
        return "bytes";
      case Kind::tuple:
        return fmt::format("a tuple of {}", value.second);
      case Kind::list:
        return "a list";
      case Kind::dict:
        return "a dict";
      case Kind::global:
        return "a function or class";
      case Kind::storage:
        return "a storage";
      case Kind::tensor:
        return "a tensor";
    }
    return {};
  }

  // The opcodes, as in Python's pickletools.

  void run() {
    if (take_number(1) != 0x80) {
      fail_damaged(fmt::format("0x{:02x} for the first opcode, expected PROTO: it is no pickle of protocol 2 or later",
                               std::to_integer<int>(pickle_[0])));
    }
    if (const auto protocol = take_number(1); protocol < 2 || protocol > 5) {
      fail(fmt::format("pickle protocol {}, expected 2 to 5", protocol));
    }
    while (true) {
      opcode_ = position_;
      const auto code = static_cast<unsigned char>(take_number(1));
      if (code == '.') {
        return;
      }
      step(code);
    }
  }

  void step(unsigned char code) {
    switch (code) {
      case 0x95:  // FRAME: only a hint for buffering
        if (const auto length = take_number(8); length > left()) {
          fail_damaged("a frame that reaches past the end");
        }
        return;
      case '(':
        marks_.push_back(stack_.size());
        return;
      case '0':  // POP; a mark counts as a value
        if (!marks_.empty() && marks_.back() == stack_.size()) {
          marks_.pop_back();
        } else {
          pop();
        }
        return;
      case '1':
        stack_.resize(pop_mark());
        return;
      case '2':
        push(top());
        return;

      case 'N':
        push({Kind::none, 0, 0});
        return;
      case 0x88:
      case 0x89:
        push({Kind::boolean, code == 0x88, 0});
        return;
      case 'J':
        push({Kind::integer, static_cast<std::int32_t>(take_number(4)), 0});
        return;
      case 'K':
        push({Kind::integer, static_cast<std::int64_t>(take_number(1)), 0});
        return;
      case 'M':
        push({Kind::integer, static_cast<std::int64_t>(take_number(2)), 0});
        return;
      case 0x8a:
        push_long(take_number(1));
        return;
      case 0x8b:
        push_long(take_number(4));
        return;
      case 'G':
        take(8);
        push({Kind::real, 0, 0});
        return;
      case 0x8c:
        push_text(take_number(1));
        return;
      case 'X':
        push_text(take_number(4));
        return;
      case 0x8d:
        push_text(take_number(8));
        return;
      case 'C':
        take(take_number(1));
        push({Kind::bytes, 0, 0});
        return;
      case 'B':
        take(take_number(4));
        push({Kind::bytes, 0, 0});
        return;
      case 0x8e:
        take(take_number(8));
        push({Kind::bytes, 0, 0});
        return;

      case ')':
        push({Kind::tuple, 0, 0});
        return;
      case 't':
        push_tuple(pop_mark());
        return;
      case 0x85:
      case 0x86:
      case 0x87:
        push_short_tuple(code - 0x84u);
        return;
      case ']':
        push({Kind::list, 0, 0});
        return;
      case 'l':
        stack_.resize(pop_mark());
        push({Kind::list, 0, 0});
        return;
      case 'a':
        pop();
        append_to_list();
        return;
      case 'e':
        stack_.resize(pop_mark());
        append_to_list();
        return;
      case '}':
        push({Kind::dict, -1, 0});
        return;
      case 's':
        if (stack_.size() < floor() + 2) {
          fail_damaged("the stack is empty");
        }
        set_items(stack_.size() - 2);
        return;
      case 'u':
        set_items(pop_mark());
        return;

      case 'q':
        remember(take_number(1));
        return;
      case 'r':
        remember(take_number(4));
        return;
      case 0x94:
        remember(memo_.size());
        return;
      case 'h':
        recall(take_number(1));
        return;
      case 'j':
        recall(take_number(4));
        return;

      case 'c': {
        const std::string_view module = take_line();
        push_global(module, take_line());
        return;
      }
      case 0x93:
        push_stack_global();
        return;
      case 'Q':
        push_storage();
        return;
      case 'R':
        call();
        return;
      case 'b':  // BUILD: the _metadata of a state dict
        pop();
        if (values_[top()].kind != Kind::dict) {
          fail_damaged(fmt::format("attributes for {}, expected an OrderedDict", text_of(values_[top()])));
        }
        return;
      default:
        fail_opcode(code);
    }
  }

  /// A signed little-endian number of any length that fits 64 bits.
  void push_long(std::uint64_t bytes) {
    if (bytes > 8) {
      fail(fmt::format("an integer of {} bytes at byte {}, expected at most 8", bytes, opcode_));
    }
    const auto unused_bits = static_cast<int>(64 - 8 * bytes);
    const std::uint64_t number = take_number(static_cast<std::size_t>(bytes));
    // Shifting the sign bit to the top and back extends it.
    push({Kind::integer, bytes == 0 ? 0 : static_cast<std::int64_t>(number << unused_bits) >> unused_bits, 0});
  }

  [[noreturn]] void fail_opcode(unsigned char code) const {
    const auto* known = std::find_if(refused_opcodes.begin(), refused_opcodes.end(),
                                     [&](const RefusedOpcode& opcode) { return opcode.code == code; });
    fail(fmt::format("opcode {} (0x{:02x}) at byte {}; refused: torch.save writes none for plain tensors",
                     known == refused_opcodes.end() ? std::string_view("unknown") : known->name, code, opcode_));
  }

  std::span<const std::byte> pickle_;
  std::string_view file_name_;
  std::size_t position_ = 0;
  std::size_t opcode_ = 0;  // where the current one stands
  std::vector<Value> values_;
  std::vector<Id> children_;            // of tuples
  std::vector<std::vector<Id>> dicts_;  // keys and values in turn
  std::vector<Storage> storages_;
  std::vector<Tensor> tensors_;
  std::vector<Id> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint32_t, Id> memo_;
};

}  // namespace

std::vector<PickledTensor> unpickle_state_dict(std::span<const std::byte> pickle, std::string_view file_name) {
  if (std::ssize(pickle) > max_pickle_bytes) {
    throw Error(ErrorKind::input, fmt::format("{}: the pickle of the weights has {} bytes, more than the {} allowed",
                                              file_name, pickle.size(), max_pickle_bytes));
  }
  return Unpickler(pickle, file_name).state_dict();
}

}  // namespace gptqd::io
