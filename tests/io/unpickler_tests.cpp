#include <gmock/gmock.h>

#include <random>

#include "io/pytorch/unpickler.hpp"
#include "tests/io/file_support.hpp"
#include "tests/io/pytorch_support.hpp"

namespace gptqd::io {
namespace {

using namespace std::string_literals;
using test::bytes_of;
using test::error_of;
using test::little_endian;
using test::Pickle;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<PickledTensor> read(std::string_view pickle) { return unpickle_state_dict(bytes_of(pickle), "weights"); }

Error refusal(std::string_view pickle) {
  Error error = error_of([&] { read(pickle); });
  EXPECT_EQ(error.kind(), ErrorKind::input) << error.message();
  EXPECT_THAT(error.message(), HasSubstr("weights: the pickle of the weights"));
  return error;
}

std::string half_storage(std::int64_t elements) { return Pickle().storage("HalfStorage", "7", elements).bytes(); }

/// "w": a [2, 3] tensor in row-major order, 4 elements into a storage of 10.
Pickle simple_item() { return Pickle().text("w").tensor(half_storage(10), 4, {2, 3}, {3, 1}); }

void expect_simple(const PickledTensor& tensor) {
  EXPECT_EQ(tensor.name, "w");
  EXPECT_EQ(tensor.dtype, DType::f16);
  EXPECT_THAT(tensor.shape, ElementsAre(2, 3));
  EXPECT_THAT(tensor.strides, ElementsAre(3, 1));
  EXPECT_EQ(tensor.offset, 4);
  EXPECT_EQ(tensor.storage_key, "7");
  EXPECT_EQ(tensor.storage_bytes, 20);
}

TEST(Unpickler, ReadsAPlainDict) {
  const auto tensors = read(simple_item().dict_file());

  ASSERT_EQ(tensors.size(), 1u);
  expect_simple(tensors[0]);
}

TEST(Unpickler, ReadsProtocol4WithFramesAndMemo) {
  const auto word = [](std::string_view text) {
    return "\x8c" + little_endian(text.size(), 1) + std::string(text) + "\x94";
  };
  const std::string body = "}\x94("s + word("w") + word("torch._utils") + word("_rebuild_tensor_v2") + "\x93\x94((" +
                           word("storage") + word("torch") + word("HalfStorage") + "\x93\x94" + word("7") +
                           word("cpu") + "K\x0at\x94QK\x04K\x02K\x03\x86\x94K\x03K\x01\x86\x94\x89" +
                           word("collections") + word("OrderedDict") + "\x93\x94)R\x94t\x94R\x94u.";

  const auto tensors = read("\x80\x04\x95"s + little_endian(body.size(), 8) + body);

  ASSERT_EQ(tensors.size(), 1u);
  expect_simple(tensors[0]);
}

TEST(Unpickler, SharesValuesThroughTheMemo) {
  Pickle items = simple_item();
  items.op("q\x05"s + "0").text("v").op("h\x05").text("u").op("r\x05\0\0\0"s).op("0");
  const Pickle pickle =
      Pickle().text("w").op("q\x01"s).tensor(half_storage(6), 0, {6}, {1}).op("r"s + little_endian(300, 4));
  const auto tensors = read(Pickle(pickle.bytes()).text("tied").op("j" + little_endian(300, 4)).dict_file());

  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "w");
  EXPECT_EQ(tensors[1].name, "tied");
  EXPECT_EQ(tensors[1].storage_key, "7");
  EXPECT_EQ(tensors[1].shape, tensors[0].shape);
}

TEST(Unpickler, ReadsParametersAndDropsMetadata) {
  Pickle pickle;
  pickle.ordered_dict().op("(");
  pickle.text("a").global("torch._utils", "_rebuild_parameter").tensor(half_storage(2), 0, {2}, {1});
  pickle.op("\x88").ordered_dict().op("\x87R");
  pickle.text("b").global("torch._utils", "_rebuild_parameter_with_state").op("(");
  pickle.tensor(half_storage(2), 1, {}, {}).op("\x88").ordered_dict().op("}").text("tag").integer(1).op("s").op("tR");
  pickle.op("u}").text("_metadata").ordered_dict().text("").op("}").text("version").integer(1).op("sssb");

  const auto tensors = read(pickle.file());

  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_THAT(tensors[0].shape, ElementsAre(2));
  EXPECT_EQ(tensors[1].name, "b");
  EXPECT_THAT(tensors[1].shape, IsEmpty());
  EXPECT_EQ(tensors[1].offset, 1);
}

TEST(Unpickler, KnowsTheTypesOfStorages) {
  const std::vector<std::pair<std::string, DType>> types{
      {"DoubleStorage", DType::f64},    {"FloatStorage", DType::f32}, {"HalfStorage", DType::f16},
      {"BFloat16Storage", DType::bf16}, {"LongStorage", DType::i64},  {"IntStorage", DType::i32},
      {"ShortStorage", DType::i16},     {"CharStorage", DType::i8},   {"ByteStorage", DType::u8},
      {"BoolStorage", DType::boolean}};
  for (const auto& [type, dtype] : types) {
    const auto tensors =
        read(Pickle().text("t").tensor(Pickle().storage(type, "0", 3).bytes(), 0, {3}, {1}).dict_file());

    ASSERT_EQ(tensors.size(), 1u) << type;
    EXPECT_EQ(tensors[0].dtype, dtype) << type;
    EXPECT_EQ(tensors[0].storage_bytes, 3 * size_of(dtype)) << type;
  }
}

TEST(Unpickler, ReadsTensorsOfUntypedStorages) {
  Pickle pickle;
  pickle.text("t").global("torch._utils", "_rebuild_tensor_v3").op("((").text("storage");
  pickle.global("torch.storage", "UntypedStorage").text("0").text("cpu").integer(8).op("tQ").integer(1);
  pickle.numbers({3}).numbers({1}).op("\x89").ordered_dict().global("torch", "uint16").op("tR");

  const auto tensors = read(pickle.dict_file());

  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].dtype, DType::u16);
  EXPECT_EQ(tensors[0].storage_bytes, 8);
}

TEST(Unpickler, ReadsIntegersOfAllWidths) {
  Pickle pickle;
  pickle.text("t").global("torch._utils", "_rebuild_tensor_v2").op("(").op(half_storage(70'000));
  pickle.op("\x8a\0"s).op("(M\x00\x01J\x03\x00\x00\x00K\x02\x8a\x01\x05\x8b\x01\0\0\0\x06t"s);
  pickle.op("(M\xb4\x00K\x3cK\x1e\x8a\x01\x06\x8a\x01\x01t"s).op("\x89").ordered_dict().op("tR");

  const auto tensors = read(pickle.dict_file());

  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].offset, 0);
  EXPECT_THAT(tensors[0].shape, ElementsAre(256, 3, 2, 5, 6));
  EXPECT_THAT(tensors[0].strides, ElementsAre(180, 60, 30, 6, 1));
}

TEST(Unpickler, AnEmptyDictHasNoTensors) { EXPECT_THAT(read("\x80\x02}."), IsEmpty()); }

struct HostilePickle {
  std::string name;
  std::string pickle;
  std::string offence;
};

void expect_refused(const std::vector<HostilePickle>& cases) {
  for (const auto& hostile : cases) {
    SCOPED_TRACE(hostile.name);
    EXPECT_THAT(refusal(hostile.pickle).message(), HasSubstr(hostile.offence));
  }
}

TEST(Unpickler, NamesTheFunctionThatAPickleWantsToCall) {
  expect_refused({
      {"os.system", "\x80\x02}(X\x01\0\0\0wcos\nsystem\nX\x04\0\0\0exit\x85Ru."s,
       "it wants to call \"os.system\" at byte 10; refused"},
      {"protocol 4", "\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04\x65xit\x85R."s, "\"posix.system\" at byte 17"},
      {"eval",
       "\x80\x02"
       "cbuiltins\neval\nX\x01\0\0\0\x31\x85R."s,
       "\"builtins.eval\" at byte 2"},
      {"nested load",
       "\x80\x02"
       "ctorch.storage\n_load_from_bytes\n."s,
       "\"torch.storage._load_from_bytes\""},
      {"quantized",
       "\x80\x02"
       "ctorch._utils\n_rebuild_qtensor\n."s,
       "\"torch._utils._rebuild_qtensor\""},
      {"attribute of a known module",
       "\x80\x02"
       "ctorch._utils\nimport_module\n."s,
       "\"torch._utils.import_module\""},
      {"dotted name",
       "\x80\x04\x8c\x0b"
       "collections\x8c\x14OrderedDict.__init__\x93."s,
       "\"collections.OrderedDict.__init__\""},
      {"control characters",
       "\x80\x02"
       "c\x1b[2J\nx\xff\n."s,
       "\"\\u001b[2J.x\\ufffd\""},
      {"a name without an end",
       "\x80\x02"
       "cos"s,
       "a line without an end"},
      {"a long name",
       "\x80\x02"
       "c" +
           std::string(100'000, 'm') + "\nf\n.",
       "m.f\""},
  });
  EXPECT_LT(refusal("\x80\x02"
                    "c" +
                    std::string(100'000, 'm') + "\nf\n.")
                .message()
                .size(),
            500u);
}

TEST(Unpickler, NamesTheOpcodeThatItRefuses) {
  expect_refused({
      {"INST", "\x80\x02(ios\nsystem\n."s, "opcode INST (0x69) at byte 3; refused"},
      {"OBJ", "\x80\x02(o."s, "opcode OBJ"},
      {"NEWOBJ",
       "\x80\x02"
       "ccollections\nOrderedDict\n)\x81."s,
       "opcode NEWOBJ (0x81)"},
      {"EXT1", "\x80\x02\x82\x01."s, "opcode EXT1"},
      {"PERSID", "\x80\x02P0\n."s, "opcode PERSID"},
      {"EMPTY_SET", "\x80\x04\x8f."s, "opcode EMPTY_SET"},
      {"none such", "\x80\x02\xff."s, "opcode unknown (0xff) at byte 2"},
      {"PROTO again", "\x80\x02\x80\x02."s, "opcode unknown (0x80)"},
  });
}

TEST(Unpickler, RefusesDamagedPickles) {
  const std::string storage = half_storage(4);
  expect_refused({
      {"empty", "", "ends after 0 bytes"},
      {"text", "hello", "0x68 for the first opcode"},
      {"protocol 0", "(lp0\n.", "0x28 for the first opcode"},
      {"protocol 6", "\x80\x06}.", "protocol 6, expected 2 to 5"},
      {"only STOP", "\x80\x02.", "the stack is empty"},
      {"POP below a mark", "\x80\x02N(00.", "the stack is empty"},
      {"TUPLE2 below a mark", "\x80\x02N(N\x86."s, "the stack is empty"},
      {"SETITEM below a mark", "\x80\x02}(NNs."s, "the stack is empty"},
      {"no mark", "\x80\x02Nt."s, "a mark is missing"},
      {"nothing in the memo", "\x80\x02h\x07."s, "the memo has no value 7 at byte 2"},
      {"a key without a value", "\x80\x02}(Nu."s, "a key without a value"},
      {"items for None", "\x80\x02NNNs."s, "items for None, expected a dict"},
      {"a list of items for a dict", "\x80\x02}Na."s, "items for a dict, expected a list"},
      {"a frame past the end", "\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff."s, "a frame that reaches past the end"},
      {"a huge text", "\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff."s, "it ends after 12 bytes"},
      {"huge bytes", "\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."s, "it ends after 12 bytes"},
      {"a long integer", "\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\x01."s, "an integer of 9 bytes at byte 2"},
      {"a call of None", "\x80\x02N)R."s, "a call of None with a tuple of 0"},
      {"a call of a type",
       "\x80\x02"
       "ctorch\nHalfStorage\n)R."s,
       "a call of a type"},
      {"an OrderedDict of something",
       "\x80\x02"
       "ccollections\nOrderedDict\nN\x85R."s,
       "1 arguments, expected 0"},
      {"attributes for None", "\x80\x02N}b."s, "attributes for None"},
      {"a module that is None", "\x80\x04N\x8c\x01x\x93."s, "a function called None.\"x\""},
      {"a persistent id of text", "\x80\x02X\x01\0\0\0aQ."s, "a persistent id that is \"a\""},
      {"a short persistent id", "\x80\x02)Q."s, "a tuple of 0, expected (\"storage\""},
      {"a persistent id of another kind", Pickle().op("(").text("module").op("NNNNtQ").file(), "that is no storage"},
      {"a storage of negative size", Pickle().storage("HalfStorage", "0", -1).file(), "that is no storage"},
      {"a tensor of nothing", Pickle().global("torch._utils", "_rebuild_tensor_v2").op("(NNNNNNtR").file(),
       "a tensor made of None, None, None, None"},
      {"a tensor with few arguments", Pickle().global("torch._utils", "_rebuild_tensor_v2").op(")R").file(),
       "0 arguments, expected 6"},
      {"a parameter of None", Pickle().global("torch._utils", "_rebuild_parameter").op("NNN\x87R").file(),
       "a parameter made of None"},
      {"fewer strides", Pickle().text("w").tensor(storage, 0, {2, 2}, {1}).dict_file(), "2 extents, but 1 strides"},
      {"17 dimensions",
       Pickle()
           .text("w")
           .tensor(storage, 0, std::vector<std::int64_t>(17, 1), std::vector<std::int64_t>(17, 1))
           .dict_file(),
       "a tensor of 17 dimensions"},
  });
}

TEST(Unpickler, RefusesWhatIsNoStateDict) {
  const std::string tensor = Pickle().tensor(half_storage(4), 0, {4}, {1}).bytes();
  expect_refused({
      {"a tensor", Pickle(tensor).file(), "the file holds a tensor, expected a dict"},
      {"a list", "\x80\x02].", "the file holds a list"},
      {"a dict inside", Pickle().text("state_dict").op("}").dict_file(),
       "\"state_dict\" is a dict, expected a tensor; save model.state_dict() alone"},
      {"a number inside", Pickle().text("epoch").integer(3).dict_file(), "\"epoch\" is 3, expected a tensor"},
      {"a number for a name", Pickle().integer(3).op(tensor).dict_file(), "the dict has 3 among its keys"},
      {"a name twice", Pickle().text("w").op(tensor).text("w").op(tensor).dict_file(), "the name \"w\" occurs twice"},
      {"a name that is not UTF-8", Pickle().text("\xc0\xaf").op(tensor).dict_file(), "is not UTF-8"},
  });
}

TEST(Unpickler, RefusesTensorsOutsideTheirStorage) {
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  const auto item = [](std::int64_t offset, const std::vector<std::int64_t>& shape,
                       const std::vector<std::int64_t>& strides, std::int64_t elements = 10) {
    return Pickle().text("w").tensor(half_storage(elements), offset, shape, strides).dict_file();
  };
  EXPECT_EQ(read(item(4, {2, 3}, {3, 1})).size(), 1u);
  EXPECT_EQ(read(item(most, {0, 3}, {most, 1})).size(), 1u);  // nothing lies anywhere
  expect_refused({
      {"one too far", item(5, {2, 3}, {3, 1}), "it reaches outside its storage"},
      {"an offset at the end", item(10, {}, {}), "it reaches outside its storage"},
      {"a wide stride", item(0, {2, 3}, {8, 1}), "it reaches outside its storage"},
      {"a negative stride", item(9, {10}, {-1}), "a negative number"},
      {"a negative extent", item(0, {-1}, {1}), "a negative number"},
      {"a negative offset", item(-1, {1}, {1}), "a negative number"},
      {"a shape above 63 bits", item(0, {most, 2}, {0, 0}), "the shape overflows 63 bits"},
      {"a reach above 63 bits", item(0, {3, 3}, {most, most}), "it reaches outside its storage"},
      {"a sum above 63 bits", item(most, {2}, {1}), "it reaches outside its storage"},
      {"a storage above 63 bits", item(0, {1}, {1}, most), "the storage's size overflows 63 bits"},
      {"an expanded view", item(0, {1 << 20, 1 << 20}, {0, 0}), "an expanded view, larger than its storage"},
      {"windows that overlap", item(0, {4, 4}, {1, 1}), "an expanded view, larger than its storage"},
  });
}

TEST(Unpickler, RefusesTensorsThatAreStoredChanged) {
  Pickle pickle;
  pickle.text("w").global("torch._utils", "_rebuild_tensor_v2").op("(").op(half_storage(4)).integer(0).numbers({4});
  pickle.numbers({1}).op("\x89").ordered_dict();

  EXPECT_EQ(read(Pickle(pickle.bytes()).op("NtR").dict_file()).size(), 1u);
  EXPECT_EQ(read(Pickle(pickle.bytes()).op("}tR").dict_file()).size(), 1u);
  EXPECT_THAT(refusal(Pickle(pickle.bytes()).op("}").text("neg").op("\x88stR").dict_file()).message(),
              HasSubstr("stored negated or conjugated"));
}

TEST(Unpickler, EveryPrefixIsRefused) {
  const std::string whole = simple_item().dict_file();
  for (std::size_t length = 0; length < whole.size(); ++length) {
    refusal(whole.substr(0, length));
  }
}

TEST(Unpickler, AnyByteMayBeWrong) {
  const std::string whole = simple_item().dict_file();
  int refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (int value = 0; value < 256; ++value) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(value);
      try {
        read(damaged);
      } catch (const Error& error) {
        ASSERT_EQ(error.kind(), ErrorKind::input) << error.message();
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, static_cast<int>(whole.size()) * 200);
}

TEST(Unpickler, BombsCostNoMoreThanTheirSize) {
  constexpr std::size_t length = 1'000'000;
  // Lists of lists of lists: nothing follows them down.
  EXPECT_THAT(refusal("\x80\x02" + std::string(length, ']') + std::string(length - 1, 'a') + ".").message(),
              HasSubstr("the file holds a list"));
  // A tuple of a tuple of a tuple, and a value that contains itself.
  std::string nested = "\x80\x02)";
  for (std::size_t i = 0; i < length; ++i) {
    nested += "\x85";
  }
  EXPECT_THAT(refusal(nested + ".").message(), HasSubstr("the file holds a tuple of 1"));
  EXPECT_THAT(refusal("\x80\x02}q\x01X\x01\0\0\0wh\x01s."s).message(), HasSubstr("\"w\" is a dict"));
  // 2^64 references if anything were copied.
  std::string laughs = "\x80\x02N";
  for (int i = 0; i < 64; ++i) {
    laughs += "2\x86";
  }
  EXPECT_THAT(refusal(laughs + ".").message(), HasSubstr("the file holds a tuple of 2"));
  // The memo's highest number is no size of a table.
  EXPECT_THAT(refusal("\x80\x02Nr\xff\xff\xff\xff."s).message(), HasSubstr("the file holds None"));
  // One huge tuple as the shape of many tensors.
  Pickle many;
  many.numbers(std::vector<std::int64_t>(10'000, 1)).op("q\x01"s + "0").op(half_storage(1)).op("q\x02"s + "0");
  for (int i = 0; i < 10'000; ++i) {
    many.global("torch._utils", "_rebuild_tensor_v2").op("(h\x02K\0h\x01h\x01NNtR"s);
  }
  EXPECT_THAT(refusal(many.file()).message(), HasSubstr("a tensor of 10000 dimensions"));
  // More than any state dict has.
  EXPECT_THAT(refusal(std::string(static_cast<std::size_t>(max_pickle_bytes) + 1, 'N')).message(),
              HasSubstr("more than the 16777216 allowed"));
}

}  // namespace
}  // namespace gptqd::io
