#include "io/tokenizer/sentencepiece_model.hpp"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "io/atomic_file.hpp"
#include "io/tokenizer/added_tokens.hpp"
#include "io/tokenizer/decoder.hpp"
#include "io/tokenizer/joints.hpp"
#include "io/tokenizer/json_part.hpp"
#include "io/tokenizer/pool.hpp"
#include "io/tokenizer/protobuf.hpp"
#include "io/tokenizer/tokenizer_config.hpp"
#include "io/tokenizer/utf8.hpp"
#include "io/tokenizer/word_cache.hpp"
#include "kernels/base/error.hpp"

namespace gptqd::io {

namespace {

using sentencepiece::SentencePieceProcessor;

constexpr std::int64_t most_model_bytes = std::int64_t{256} << 20;
/// The library takes some 150 bytes a byte of text.
constexpr std::size_t largest_part = std::size_t{16} << 20;
constexpr char32_t blank_mark = U'\u2581';

/// What decides how a model treats text, of its trainer_spec and normalizer_spec.
struct ModelSpec {
  std::uint64_t type = 1;  // UNIGRAM, what is not said
  bool add_dummy_prefix = true;
  bool has_charsmap = false;
  bool moves_whitespace = false;  // remove_extra_whitespaces, treat_whitespace_as_suffix
};

ModelSpec read_spec(std::string_view model, const std::string& where) {
  constexpr std::uint32_t trainer_spec = 2;
  constexpr std::uint32_t model_type = 3;
  constexpr std::uint32_t treat_whitespace_as_suffix = 24;
  constexpr std::uint32_t normalizer_spec = 3;
  constexpr std::uint32_t precompiled_charsmap = 2;
  constexpr std::uint32_t add_dummy_prefix = 3;
  constexpr std::uint32_t remove_extra_whitespaces = 4;
  constexpr std::uint32_t escape_whitespaces = 5;
  ModelSpec spec;
  bool removes = true;  // what is not said
  bool escapes = true;
  bool suffix = false;
  for_each_field(model, where, [&](const ProtobufField& part) {
    if (part.number == trainer_spec && part.has_bytes) {
      for_each_field(part.bytes, where, [&](const ProtobufField& field) {
        if (field.number == model_type && !field.has_bytes) {
          spec.type = field.value;
        } else if (field.number == treat_whitespace_as_suffix && !field.has_bytes) {
          suffix = field.value != 0;
        }
      });
    } else if (part.number == normalizer_spec && part.has_bytes) {
      for_each_field(part.bytes, where, [&](const ProtobufField& field) {
        if (field.number == precompiled_charsmap) {
          spec.has_charsmap = !field.has_bytes || !field.bytes.empty();
        } else if (field.number == add_dummy_prefix && !field.has_bytes) {
          spec.add_dummy_prefix = field.value != 0;
        } else if (field.number == remove_extra_whitespaces && !field.has_bytes) {
          removes = field.value != 0;
        } else if (field.number == escape_whitespaces && !field.has_bytes) {
          escapes = field.value != 0;
        }
      });
    }
  });
  spec.moves_whitespace = removes || suffix || !escapes;
  return spec;
}

/// @throws Error (input) with the library's message
void load(SentencePieceProcessor& processor, std::string_view model, const std::string& where) {
  if (const auto status = processor.LoadFromSerializedProto(model); !status.ok()) {
    fail(where, fmt::format("the sentencepiece library refuses the model: {}; copy the file again", status.ToString()));
  }
}

/// The model, ready to encode.
class Model {
 public:
  Model(const std::string& serialized, const ModelSpec& spec, const std::string& where)
      : cuts_(!spec.moves_whitespace), has_prefix_(spec.add_dummy_prefix) {
    load(with_prefix_, serialized, where);
    // A message that follows another of the same field is merged into it: normalizer_spec.add_dummy_prefix = false.
    load(without_prefix_, serialized + std::string("\x1a\x02\x18\x00", 4), where);
    for (int id = 0; id < size(); ++id) {
      const auto& piece = with_prefix_.IdToPiece(id);
      if (!is_valid_utf8(piece) || piece.empty()) {
        fail(where, fmt::format("piece {} is not valid UTF-8", id));
      }
      if (!with_prefix_.IsControl(id) && !with_prefix_.IsUnknown(id) && !with_prefix_.IsByte(id)) {
        joints_.add(piece);
        if (utf8_step(piece, 0).length == piece.size()) {
          known_.insert(code_point_at(piece, 0));
        }
      }
    }
  }

  const SentencePieceProcessor& pieces() const { return with_prefix_; }
  int size() const { return with_prefix_.GetPieceSize(); }

  /// Appends the ids of a run of text, with a blank put in front if the model does so and `prefix` is true.
  ///
  /// The library gets it in parts, cut where no merge reaches across: the result is the same, and words come again.
  void encode(std::string_view run, bool prefix, WordCache& cache, std::vector<std::int32_t>& ids) const {
    for (std::size_t begin = 0; begin < run.size();) {
      const auto end = cuts_ ? joints_.end_of_part(
                                   run, begin, [&](std::size_t position) { return character_at(run, position); },
                                   [&](char32_t character) { return known_.count(character) != 0; })
                             : run.size();
      const auto part = run.substr(begin, end - begin);
      if (begin == 0 && has_prefix_ && prefix) {
        encode_part(part, with_prefix_, ids);
      } else if (part.size() > WordCache::longest_word) {
        encode_part(part, without_prefix_, ids);
      } else {
        const auto place = cache.place(part);
        if (const auto known = cache.find(place, part)) {
          ids.insert(ids.end(), known->begin(), known->end());
        } else {
          const auto before = ids.size();
          encode_part(part, without_prefix_, ids);
          cache.store(place, part, std::span(ids).subspan(before));
        }
      }
      begin = end;
    }
  }

 private:
  static Character character_at(std::string_view text, std::size_t position) {
    const auto character = code_point_at(text, position);
    return {character == ' ' ? blank_mark : character, utf8_step(text, position).length};
  }

  static void encode_part(std::string_view part, const SentencePieceProcessor& model, std::vector<std::int32_t>& ids) {
    if (part.size() > largest_part) {
      throw Error(
          ErrorKind::input,
          fmt::format("a word of {} bytes: the sentencepiece library gets at most {} MiB at once; break the text "
                      "up with blanks or line ends",
                      part.size(), largest_part >> 20));
    }
    std::vector<int> part_ids;
    if (const auto status = model.Encode(part, &part_ids); !status.ok()) {
      throw Error(ErrorKind::input, fmt::format("the sentencepiece library does not encode {} bytes of text: {}",
                                                part.size(), status.ToString()));
    }
    ids.insert(ids.end(), part_ids.begin(), part_ids.end());
  }

  SentencePieceProcessor with_prefix_;
  SentencePieceProcessor without_prefix_;
  Joints joints_;
  std::unordered_set<char32_t> known_;
  bool cuts_;
  bool has_prefix_;
};

/// What a tokenizer is made of besides the model.
struct Surroundings {
  std::vector<AddedToken> added;
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> after;
  std::unique_ptr<Decoder> decoder;
  bool legacy = true;
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(std::unique_ptr<Model> model, Surroundings surroundings)
      : model_(std::move(model)),
        surroundings_(std::move(surroundings)),
        added_(surroundings_.added, nullptr),
        vocab_size_(model_->size()) {
    for (const auto& token : surroundings_.added) {
      added_of_id_.emplace(token.id, &token);
      vocab_size_ = std::max(vocab_size_, std::int64_t{token.id} + 1);
    }
  }

  std::vector<std::int32_t> encode(std::string_view text, SpecialTokens special) const override {
    const auto repaired = repaired_text(text);
    if (repaired) {
      text = *repaired;
    }
    std::vector<std::int32_t> ids;
    if (special == SpecialTokens::add) {
      ids = surroundings_.before;
    }
    auto cache = caches_.take();
    const auto push = [&](std::int32_t id) { ids.push_back(id); };
    added_.split_raw(text, push, [&](std::string_view raw) {
      added_.split_normalized(raw, push, [&](std::string_view run) {
        model_->encode(run, gets_prefix(run, run.data() == text.data()), *cache, ids);
      });
    });
    caches_.give_back(std::move(cache));
    if (special == SpecialTokens::add) {
      ids.insert(ids.end(), surroundings_.after.begin(), surroundings_.after.end());
    }
    return ids;
  }

  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const override {
    std::vector<std::string> tokens;
    for (const auto id : ids) {
      if (const auto added = added_of_id_.find(id); added != added_of_id_.end()) {
        if (!(skip_special && added->second->special)) {
          tokens.push_back(added->second->content);
        }
      } else if (id >= 0 && id < model_->size()) {
        tokens.push_back(model_->pieces().IdToPiece(id));
      }
    }
    surroundings_.decoder->decode(tokens);
    std::string text;
    for (const auto& token : tokens) {
      text += token;
    }
    return text;
  }

  std::string token(std::int32_t id) const override {
    if (const auto added = added_of_id_.find(id); added != added_of_id_.end()) {
      return added->second->content;
    }
    return id >= 0 && id < model_->size() ? model_->pieces().IdToPiece(id) : "";
  }

  std::int64_t vocab_size() const override { return vocab_size_; }

 private:
  /// Metaspace's prepend_scheme "first" unless `legacy`.
  bool gets_prefix(std::string_view run, bool comes_first) const {
    return surroundings_.legacy || (comes_first && !run.starts_with(' ') && !run.starts_with("\u2581"));
  }

  std::unique_ptr<Model> model_;
  Surroundings surroundings_;
  AddedTokens added_;
  std::unordered_map<std::int32_t, const AddedToken*> added_of_id_;  // into surroundings_.added
  std::int64_t vocab_size_ = 0;
  mutable Pool<WordCache> caches_;
};

/// The id that the model has for `content`, or -1.
std::int32_t id_in_model(const SentencePieceProcessor& model, const std::string& content) {
  const auto id = model.PieceToId(content);
  return model.IdToPiece(id) == content ? id : -1;
}

/// The added tokens with their ids: the model's for its own pieces, else the file's, else the next.
std::vector<AddedToken> added_tokens(const SentencePieceProcessor& model, const TokenizerConfig& config,
                                     const std::string& where) {
  std::vector<AddedToken> tokens;
  std::int32_t next = model.GetPieceSize();
  for (const auto& [named, has_id] : config.added) {
    auto token = named;
    const auto own = id_in_model(model, token.content);
    if (own >= 0 && has_id && own != token.id) {
      fail(where,
           fmt::format("token \"{}\" has the id {} beside the model and {} in it", token.content, token.id, own));
    }
    token.id = own >= 0 ? own : has_id ? token.id : next;
    const auto same_id =
        std::find_if(tokens.begin(), tokens.end(), [&](const AddedToken& other) { return other.id == token.id; });
    if (same_id != tokens.end() || (own < 0 && token.id < model.GetPieceSize())) {
      fail(where, fmt::format("tokens \"{}\" and \"{}\" both have the id {}",
                              same_id != tokens.end() ? same_id->content : model.IdToPiece(token.id), token.content,
                              token.id));
    }
    next = std::max(next, token.id + 1);
    tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace

std::unique_ptr<Tokenizer> tokenizer_from_sentencepiece(const std::filesystem::path& folder) {
  const auto path = folder / "tokenizer.model";
  const auto where = path.string();
  const auto bytes = read_file(path, most_model_bytes);
  std::string serialized(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto spec = read_spec(serialized, where);
  constexpr std::uint64_t bpe = 2;
  if (spec.type != bpe) {
    fail_unsupported(where, fmt::format("a SentencePiece model of type {} (1: unigram, 3: word, 4: char)", spec.type),
                     "type 2 (BPE)");
  }
  if (spec.has_charsmap) {
    fail_unsupported(where, "a SentencePiece model with a normalization of its own (precompiled_charsmap)",
                     "the normalization \"identity\"");
  }
  auto model = std::make_unique<Model>(serialized, spec, where);
  const auto& pieces = model->pieces();

  auto config = read_tokenizer_config(folder, {"LlamaTokenizer", "CodeLlamaTokenizer"});
  for (int id = 0; id < model->size(); ++id) {
    if (pieces.IsControl(id) || pieces.IsUnknown(id)) {
      config.add_special(pieces.IdToPiece(id));
    }
  }
  Surroundings surroundings;
  surroundings.added = added_tokens(pieces, config, where);
  const auto id_of = [&](const std::string& token, int model_id, const char* flag) {
    const auto found = std::find_if(surroundings.added.begin(), surroundings.added.end(),
                                    [&](const AddedToken& added) { return added.content == token; });
    const auto id = token.empty() ? model_id : found == surroundings.added.end() ? -1 : found->id;
    if (id < 0) {
      fail(where, fmt::format("{} is set, but neither the model nor a file beside it names the token", flag));
    }
    return id;
  };
  if (config.add_bos_token.value_or(true)) {
    surroundings.before.push_back(id_of(config.bos_token, pieces.bos_id(), "add_bos_token"));
  }
  if (config.add_eos_token.value_or(false)) {
    surroundings.after.push_back(id_of(config.eos_token, pieces.eos_id(), "add_eos_token"));
  }
  auto steps = nlohmann::json::parse(R"([{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"}])");
  if (spec.add_dummy_prefix) {
    steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  surroundings.decoder = read_decoder({{"type", "Sequence"}, {"decoders", steps}}, where);
  surroundings.legacy = config.legacy.value_or(true);
  return with_context(fmt::format("reading {}", where), [&] {
    return std::make_unique<SentencePieceTokenizer>(std::move(model), std::move(surroundings));
  });
}

}  // namespace gptqd::io
