// From the text of a PTX program to instructions. Knows what the compiler writes for this project's kernels; anything else is
// an error that names its line, never a guess.
#include <cxxabi.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "fault.h"
#include "ptx_code.h"

namespace hostlayer {
namespace {

[[noreturn]] void refuse(int line, const std::string& what) {
  throw std::runtime_error("PTX line " + std::to_string(line) + ": " + what);
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t from = 0;
  int depth = 0;
  for (size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : separator;
    if (c == '{' || c == '[') ++depth;
    if (c == '}' || c == ']') --depth;
    if (c != separator || (depth > 0 && i < text.size())) continue;
    parts.push_back(trimmed(text.substr(from, i - from)));
    from = i + 1;
  }
  return parts;
}

bool begins_with(const std::string& text, const char* prefix) { return text.compare(0, std::strlen(prefix), prefix) == 0; }

std::string readable_name(const std::string& mangled) {
  int status = 0;
  char* const text = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
  std::string name = status == 0 ? text : mangled;
  std::free(text);
  return without_parameters(name);
}

bool type_of(const std::string& word, PtxType* type) {
  if (word.size() < 2 || std::strchr("bsu", word[0]) == nullptr) return false;
  const int bits = std::atoi(word.c_str() + 1);
  if (bits != 8 && bits != 16 && bits != 32 && bits != 64) return false;
  *type = {static_cast<uint8_t>(bits), word[0] == 's'};
  return true;
}

// The words of an opcode behind the first, e.g. "shared", "v2", "u32".
struct Modifiers {
  std::vector<std::string> words;
  std::vector<PtxType> types;
  bool has(const char* word) const {
    for (const std::string& w : words) {
      if (w == word) return true;
    }
    return false;
  }
};

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  PtxCode run() {
    while (at_ < text_.size()) {
      skip_space();
      if (at_ >= text_.size()) break;
      if (in_kernel_ && in_body()) continue;
      if (!in_kernel_) outside();
    }
    return std::move(code_);
  }

 private:
  // ---- text

  void skip_space() {
    for (; at_ < text_.size(); ++at_) {
      if (text_[at_] == '\n') ++line_;
      if (text_.compare(at_, 2, "//") == 0) {
        at_ = std::min(text_.find('\n', at_), text_.size()) - 1;
      } else if (std::strchr(" \t\r\n", text_[at_]) == nullptr) {
        return;
      }
    }
  }

  std::string take_until(char end) {
    const size_t from = at_;
    for (; at_ < text_.size() && text_[at_] != end; ++at_) line_ += text_[at_] == '\n' ? 1 : 0;
    if (at_ == text_.size()) refuse(line_, std::string("expected '") + end + "' before the end");
    return text_.substr(from, at_++ - from);
  }

  std::string take_line() {
    const size_t end = std::min(text_.find('\n', at_), text_.size());
    std::string line = text_.substr(at_, end - at_);
    at_ = end;
    return line;
  }

  // ---- outside of kernels

  void outside() {
    if (text_.compare(at_, 8, ".section") == 0) {  // what debuggers read, to the end
      at_ = text_.size();
      return;
    }
    for (const char* word : {".version", ".target", ".address_size", ".file"}) {
      if (text_.compare(at_, std::strlen(word), word) == 0) {
        take_line();
        return;
      }
    }
    const size_t entry = text_.find(".entry", at_);
    const size_t end = text_.find(';', at_);
    if (entry != std::string::npos && (end == std::string::npos || entry < end)) {
      begin_kernel();
      return;
    }
    const int line = line_;
    variable(take_until(';'), line);
  }

  void variable(const std::string& statement, int line) {
    const size_t bracket = statement.find('[');
    const size_t name_at = statement.find_last_of(" \t", bracket) + 1;
    const std::string name = statement.substr(name_at, bracket - name_at);
    if (statement.find(".shared") != std::string::npos) {
      symbols_[name] = 0;  // dynamic shared memory begins at the window's first byte
      return;
    }
    if (!begins_with(statement, ".global") || statement.find(".b8 ") == std::string::npos) refuse(line, "unknown variable " + name);
    auto bytes = std::make_unique<std::vector<unsigned char>>(std::strtoull(statement.c_str() + bracket + 1, nullptr, 10));
    const size_t list = statement.find('{');
    if (list != std::string::npos) {
      size_t i = 0;
      for (const std::string& value : split(statement.substr(list + 1, statement.find('}') - list - 1), ',')) {
        bytes->at(i++) = static_cast<unsigned char>(std::atoi(value.c_str()));
      }
    }
    symbols_[name] = reinterpret_cast<uintptr_t>(bytes->data());
    code_.globals.push_back(std::move(bytes));
  }

  void begin_kernel() {
    const int line = line_;
    const std::string head = take_until('{');
    const size_t name_at = head.find_first_not_of(" \t\n", head.find(".entry") + 6);
    const size_t open = head.find('(', name_at);
    code_.kernels.emplace_back();
    kernel_ = &code_.kernels.back();
    kernel_->name = readable_name(trimmed(head.substr(name_at, open - name_at)));
    kernel_->line = line;
    const size_t bound = head.find(".maxntid");
    if (bound != std::string::npos) kernel_->most_threads = static_cast<unsigned>(std::strtoul(head.c_str() + bound + 8, nullptr, 10));
    parameters_.clear();
    size_t offset = 0;
    for (const std::string& parameter : split(head.substr(open + 1, head.find(')', open) - open - 1), ',')) {
      add_parameter(parameter, &offset, line);
    }
    prefixes_.clear();
    registers_.clear();
    predicates_.clear();
    constants_.clear();
    labels_.clear();
    branches_.clear();
    in_kernel_ = true;
    depth_ = 1;
  }

  // ".param .align 8 .b8 name[48]" or ".param .u64 name"
  void add_parameter(const std::string& text, size_t* offset, int line) {
    if (text.empty()) return;
    std::vector<std::string> words = split(text, ' ');
    size_t align = 0, bytes = 0;
    PtxType type;
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      if (words[i] == ".align") align = std::strtoull(words[i + 1].c_str(), nullptr, 10);
      if (words[i].size() > 1 && type_of(words[i].substr(1), &type)) bytes = type.bits / 8;
    }
    std::string name = words.back();
    const size_t bracket = name.find('[');
    if (bracket != std::string::npos) {
      bytes *= std::strtoull(name.c_str() + bracket + 1, nullptr, 10);
      name.resize(bracket);
    }
    if (bytes == 0) refuse(line, "unknown parameter " + text);
    if (align == 0) align = bytes;
    *offset = (*offset + align - 1) / align * align;
    parameters_[name] = static_cast<int64_t>(*offset);
    *offset += bytes;
  }

  // ---- a kernel's body

  bool in_body() {
    if (text_[at_] == '{' || text_[at_] == '}') {
      depth_ += text_[at_] == '{' ? 1 : -1;
      ++at_;
      if (depth_ == 0) end_kernel();
      return true;
    }
    const size_t end = text_.find_first_of(";:\n", at_);
    if (end != std::string::npos && text_[end] == ':' && text_[at_] == '$') {
      labels_[trimmed(take_until(':'))] = static_cast<int32_t>(kernel_->code.size());
      return true;
    }
    if (text_.compare(at_, 5, ".loc ") == 0 || text_.compare(at_, 5, ".loc\t") == 0) {
      take_line();
      return true;
    }
    const int line = line_;
    statement(trimmed(take_until(';')), line);
    return true;
  }

  void end_kernel() {
    PtxKernel& k = *kernel_;
    k.starts_block.assign(k.code.size() + 1, false);
    k.starts_block[0] = true;
    for (const auto& [index, label] : branches_) {
      const auto at = labels_.find(label);
      if (at == labels_.end()) refuse(k.code[static_cast<size_t>(index)].line, "no label " + label);
      k.code[static_cast<size_t>(index)].target = at->second;
    }
    for (const auto& label : labels_) k.starts_block[static_cast<size_t>(label.second)] = true;
    for (size_t i = 0; i < k.code.size(); ++i) {
      const PtxOp op = k.code[i].op;
      if (op == PtxOp::kBranch || op == PtxOp::kReturn || op == PtxOp::kBarrier) k.starts_block[i + 1] = true;
    }
    const bool ends = !k.code.empty() && k.code.back().guard < 0 &&
                      (k.code.back().op == PtxOp::kReturn || k.code.back().op == PtxOp::kBranch);
    if (!ends) refuse(line_, k.name + " does not end in ret or bra");
    for (const auto& [value, reg] : constants_) k.constants.push_back({reg, value});
    k.predicates = static_cast<int32_t>(predicates_.size());
    in_kernel_ = false;
    kernel_ = nullptr;
  }

  void statement(const std::string& text, int line) {
    if (begins_with(text, ".pragma")) return;
    if (begins_with(text, ".reg")) {
      declare(text, line);
      return;
    }
    if (text.empty() || text[0] == '.') refuse(line, "unknown directive " + text);
    PtxInstruction i;
    i.line = line;
    std::string rest = text;
    if (rest[0] == '@') {
      const size_t end = rest.find_first_of(" \t");
      i.guard_negated = rest[1] == '!';
      i.guard = predicate(rest.substr(i.guard_negated ? 2 : 1, end - (i.guard_negated ? 2 : 1)), line);
      rest = trimmed(rest.substr(end));
    }
    const size_t space = rest.find_first_of(" \t");
    const std::vector<std::string> words = split(rest.substr(0, space), '.');
    Modifiers m;
    for (size_t w = 1; w < words.size(); ++w) {
      PtxType type;
      if (type_of(words[w], &type)) {
        m.types.push_back(type);
      } else if (words[w].size() > 2 && std::strchr("fbsu", words[w][0]) != nullptr && words[w].find_first_of("0123456789") != std::string::npos) {
        refuse(line, "unknown type " + words[w]);
      } else {
        m.words.push_back(words[w]);
      }
    }
    if (!m.types.empty()) i.type = m.types.front();
    const std::vector<std::string> operands =
        space == std::string::npos ? std::vector<std::string>() : split(rest.substr(space + 1), ',');
    decode(words[0], m, operands, &i);
    kernel_->code.push_back(i);
  }

  // ".reg .b64 %rd<37>", ".reg .b64 %tmp" or ".reg .b32 tmp"
  void declare(const std::string& text, int line) {
    const size_t name_at = text.find_last_of(" \t") + 1;
    const size_t end = text.find('<');
    const std::string name = text.substr(name_at, end == std::string::npos ? end : end - name_at);
    const std::string kind = trimmed(text.substr(4, name_at - 4));
    PtxType type;
    if (kind == ".pred") {
      prefixes_[name] = 0;
    } else if (type_of(kind.substr(1), &type)) {
      prefixes_[name] = type.bits;
    } else {
      refuse(line, "unknown register type " + text);
    }
  }

  // ---- operands

  int16_t predicate(const std::string& name, int line) {
    if (!begins_with(name, "%p")) refuse(line, "expected a predicate, got " + name);
    return static_cast<int16_t>(predicates_.emplace(name, static_cast<int>(predicates_.size())).first->second);
  }

  int32_t new_register() { return kernel_->registers++; }

  int32_t constant(uint64_t value) {
    const auto [at, fresh] = constants_.emplace(value, 0);
    if (fresh) at->second = new_register();
    return at->second;
  }

  bool is_register(const std::string& name, int* bits) const {
    size_t end = name.size();
    while (end > 1 && std::strchr("0123456789", name[end - 1]) != nullptr) --end;
    const auto at = prefixes_.find(name.substr(0, end));
    if (at == prefixes_.end() || at->second == 0) return false;
    *bits = at->second;
    return true;
  }

  int32_t register_of(const std::string& name) {
    const auto [at, fresh] = registers_.emplace(name, 0);
    if (fresh) at->second = new_register();
    return at->second;
  }

  int32_t special(const std::string& name, int line) {
    static const struct {
      const char* name;
      PtxSpecial what;
    } kSpecials[] = {{"%tid.", PtxSpecial::kThread},   {"%ntid.", PtxSpecial::kThreads}, {"%ctaid.", PtxSpecial::kBlock},
                     {"%nctaid.", PtxSpecial::kBlocks}, {"%laneid", PtxSpecial::kLane}};
    for (const auto& s : kSpecials) {
      if (!begins_with(name, s.name)) continue;
      const auto [at, fresh] = registers_.emplace(name, 0);
      if (fresh) {
        at->second = new_register();
        kernel_->specials.push_back({at->second, s.what, s.what == PtxSpecial::kLane ? 0 : name.back() - 'x'});
      }
      return at->second;
    }
    refuse(line, "unknown register " + name);
  }

  // A register, a number, a symbol or a parameter, as a register.
  int32_t source(const std::string& text, int line) {
    int bits = 0;
    if (is_register(text, &bits)) return register_of(text);
    if (!text.empty() && text[0] == '%') return special(text, line);
    const auto symbol = symbols_.find(text);
    if (symbol != symbols_.end()) return constant(symbol->second);
    const auto parameter = parameters_.find(text);  // its address counts from the first parameter
    if (parameter != parameters_.end()) return constant(static_cast<uint64_t>(parameter->second));
    char* end = nullptr;
    const uint64_t value = text[0] == '-' ? static_cast<uint64_t>(std::strtoll(text.c_str(), &end, 0))
                                          : std::strtoull(text.c_str(), &end, 0);
    if (*end == 'U') ++end;
    if (text.empty() || *end != '\0') refuse(line, "unknown operand " + text);
    return constant(value);
  }

  int32_t destination(const std::string& text, PtxInstruction* i) {
    int bits = 0;
    if (!is_register(text, &bits)) refuse(i->line, "expected a register, got " + text);
    i->bits = static_cast<uint8_t>(bits);
    return register_of(text);
  }

  std::vector<std::string> vector_of(const std::string& text) const {
    if (text.empty() || text[0] != '{') return {text};
    return split(text.substr(1, text.size() - 2), ',');
  }

  // "[%rd1+16]" -> in[0], offset; a parameter that is named has no register.
  void address(const std::string& text, PtxInstruction* i, bool of_parameter = false) {
    if (text.size() < 3 || text[0] != '[') refuse(i->line, "expected an address, got " + text);
    std::string base = text.substr(1, text.size() - 2);
    const size_t plus = base.find('+');
    if (plus != std::string::npos) {
      i->offset = std::strtoll(base.c_str() + plus + 1, nullptr, 0);
      base.resize(plus);
    }
    if (of_parameter && base[0] != '%') {
      const auto at = parameters_.find(base);
      if (at == parameters_.end()) refuse(i->line, "no parameter " + base);
      i->offset += at->second;
    } else {
      i->in[0] = source(base, i->line);
    }
  }

  static PtxSpace space_of(const Modifiers& m) {
    return m.has("global") ? PtxSpace::kGlobal : m.has("shared") ? PtxSpace::kShared : PtxSpace::kGeneric;
  }

  // ---- opcodes

  void need(size_t wanted, const std::vector<std::string>& operands, const PtxInstruction& i) const {
    if (operands.size() != wanted) refuse(i.line, "expected " + std::to_string(wanted) + " operands");
  }

  // The usual form: one register written, some read.
  void plain(PtxOp op, const std::vector<std::string>& operands, size_t inputs, PtxInstruction* i) {
    need(inputs + 1, operands, *i);
    i->op = op;
    i->out[0] = destination(operands[0], i);
    for (size_t n = 0; n < inputs; ++n) i->in[n] = source(operands[n + 1], i->line);
  }

  void plain_predicate(PtxOp op, const std::vector<std::string>& operands, size_t inputs, PtxInstruction* i) {
    need(inputs + 1, operands, *i);
    i->op = op;
    i->predicate = predicate(operands[0], i->line);
    for (size_t n = 0; n < inputs; ++n) i->other_predicates[n] = predicate(operands[n + 1], i->line);
  }

  void decode(const std::string& op, const Modifiers& m, const std::vector<std::string>& operands, PtxInstruction* i) {
    static const std::map<std::string, PtxOp> kBinary = {{"sub", PtxOp::kSub}, {"div", PtxOp::kDiv}, {"rem", PtxOp::kRem},
                                                         {"min", PtxOp::kMin}, {"max", PtxOp::kMax}, {"shl", PtxOp::kShl},
                                                         {"shr", PtxOp::kShr}, {"add", PtxOp::kAdd}};
    static const std::map<std::string, std::pair<PtxOp, PtxOp>> kLogic = {{"and", {PtxOp::kAnd, PtxOp::kAndPred}},
                                                                         {"or", {PtxOp::kOr, PtxOp::kOrPred}},
                                                                         {"xor", {PtxOp::kXor, PtxOp::kXorPred}}};
    const auto binary = kBinary.find(op);
    const auto logic = kLogic.find(op);
    if (binary != kBinary.end()) {
      plain(binary->second, operands, 2, i);
    } else if (logic != kLogic.end() && m.has("pred")) {
      plain_predicate(logic->second.second, operands, 2, i);
    } else if (logic != kLogic.end()) {
      plain(logic->second.first, operands, 2, i);
    } else if (op == "not" && m.has("pred")) {
      plain_predicate(PtxOp::kNotPred, operands, 1, i);
    } else if (op == "not") {
      plain(PtxOp::kNot, operands, 1, i);
    } else if (op == "neg") {
      plain(PtxOp::kNeg, operands, 1, i);
    } else if (op == "mul") {
      plain(m.has("wide") ? PtxOp::kMulWide : m.has("hi") ? PtxOp::kMulHigh : PtxOp::kMul, operands, 2, i);
    } else if (op == "mad") {
      if (m.has("hi")) refuse(i->line, "unknown opcode mad.hi");
      plain(m.has("wide") ? PtxOp::kMadWide : PtxOp::kMad, operands, 3, i);
    } else if (op == "brev" || op == "clz" || op == "popc") {
      plain(op == "brev" ? PtxOp::kReverse : op == "clz" ? PtxOp::kLeadingZeros : PtxOp::kPopulation, operands, 1, i);
    } else if (op == "bfind") {  // ".shiftamt" counts from the top, as clz does
      plain(m.has("shiftamt") ? PtxOp::kLeadingZeros : PtxOp::kFindTop, operands, 1, i);
      if (i->type.is_signed) refuse(i->line, "bfind of a signed number");
      i->find = true;
    } else if (op == "bfi") {
      plain(PtxOp::kBfi, operands, 4, i);
    } else if (op == "bfe") {
      plain(PtxOp::kBfe, operands, 3, i);
    } else if (op == "prmt") {
      if (m.words.size() > 0) refuse(i->line, "unknown mode of prmt");
      plain(PtxOp::kPermute, operands, 3, i);
    } else if (op == "mov") {
      decode_mov(m, operands, i);
    } else if (op == "selp") {
      need(4, operands, *i);
      i->predicate = predicate(operands[3], i->line);
      plain(PtxOp::kSelp, {operands[0], operands[1], operands[2]}, 2, i);
    } else if (op == "setp") {
      decode_setp(m, operands, i);
    } else if (op == "cvt") {
      if (m.types.size() != 2) refuse(i->line, "expected two types");
      i->from = m.types[1];
      plain(PtxOp::kCvt, operands, 1, i);
    } else if (op == "cvta") {
      const PtxOp shared = m.has("to") ? PtxOp::kToShared : PtxOp::kFromShared;
      plain(m.has("shared") ? shared : PtxOp::kMov, operands, 1, i);
    } else if (op == "ld" || op == "st" || op == "atom" || op == "red") {
      decode_memory(op, m, operands, i);
    } else {
      decode_together(op, m, operands, i);
    }
  }

  void decode_mov(const Modifiers& m, const std::vector<std::string>& operands, PtxInstruction* i) {
    need(2, operands, *i);
    if (m.has("pred")) {
      i->op = PtxOp::kMovPred;
      i->predicate = predicate(operands[0], i->line);
      i->in[0] = source(operands[1], i->line);  // a constant
      return;
    }
    const std::vector<std::string> to = vector_of(operands[0]);
    const std::vector<std::string> from = vector_of(operands[1]);
    i->op = to.size() > 1 ? PtxOp::kUnpack : from.size() > 1 ? PtxOp::kPack : PtxOp::kMov;
    i->count = static_cast<uint8_t>(std::max(to.size(), from.size()));
    if (i->count > 2) refuse(i->line, "a pack of more than two");
    for (size_t n = 0; n < to.size(); ++n) i->out[n] = destination(to[n], i);
    for (size_t n = 0; n < from.size(); ++n) i->in[n] = source(from[n], i->line);
  }

  void decode_setp(const Modifiers& m, const std::vector<std::string>& operands, PtxInstruction* i) {
    static const std::map<std::string, PtxCompare> kCompares = {
        {"eq", PtxCompare::kEqual}, {"ne", PtxCompare::kUnequal}, {"lt", PtxCompare::kLess}, {"le", PtxCompare::kLessEqual},
        {"gt", PtxCompare::kGreater}, {"ge", PtxCompare::kGreaterEqual}};
    const auto compare = m.words.size() == 1 ? kCompares.find(m.words[0]) : kCompares.end();
    if (compare == kCompares.end()) refuse(i->line, "unknown comparison");
    need(3, operands, *i);
    i->op = PtxOp::kSetp;
    i->compare = compare->second;
    i->predicate = predicate(operands[0], i->line);
    i->in[0] = source(operands[1], i->line);
    i->in[1] = source(operands[2], i->line);
  }

  void decode_memory(const std::string& op, const Modifiers& m, const std::vector<std::string>& operands, PtxInstruction* i) {
    i->space = space_of(m);
    if (m.has("local") || m.has("const")) refuse(i->line, "unknown state space");
    if (op == "ld") {
      need(2, operands, *i);
      const std::vector<std::string> to = vector_of(operands[0]);
      i->op = m.has("param") ? PtxOp::kLoadParam : PtxOp::kLoad;
      i->count = static_cast<uint8_t>(to.size());
      for (size_t n = 0; n < to.size(); ++n) i->out[n] = destination(to[n], i);
      address(operands[1], i, m.has("param"));
    } else if (op == "st") {
      need(2, operands, *i);
      const std::vector<std::string> from = vector_of(operands[1]);
      i->op = PtxOp::kStore;
      i->count = static_cast<uint8_t>(from.size());
      address(operands[0], i);
      for (size_t n = 0; n < from.size(); ++n) i->in[n + 1] = source(from[n], i->line);
    } else {
      if (!m.has("add") && !m.has("exch")) refuse(i->line, "unknown atomic operation");
      const bool returns = op == "atom";
      need(returns ? 3 : 2, operands, *i);
      i->op = m.has("add") ? PtxOp::kAtomicAdd : PtxOp::kAtomicExchange;
      if (returns) i->out[0] = destination(operands[0], i);
      address(operands[returns ? 1 : 0], i);
      i->in[1] = source(operands[returns ? 2 : 1], i->line);
    }
  }

  // What lanes do together, and control flow.
  void decode_together(const std::string& op, const Modifiers& m, const std::vector<std::string>& operands, PtxInstruction* i) {
    if (op == "shfl" && m.has("bfly")) {
      need(5, operands, *i);
      i->op = PtxOp::kShuffleXor;
      i->out[0] = destination(operands[0].substr(0, operands[0].find('|')), i);
      i->in[0] = source(operands[1], i->line);
      i->in[1] = source(operands[2], i->line);
      i->in[3] = source(operands[4], i->line);
    } else if (op == "vote" && m.has("ballot")) {
      need(3, operands, *i);
      i->op = PtxOp::kBallot;
      i->out[0] = destination(operands[0], i);
      i->predicate = predicate(operands[1], i->line);
      i->in[3] = source(operands[2], i->line);
    } else if (op == "redux") {
      static const std::map<std::string, PtxOp> kReductions = {{"min", PtxOp::kReduceMin}, {"max", PtxOp::kReduceMax},
                                                               {"add", PtxOp::kReduceAdd}, {"and", PtxOp::kReduceAnd},
                                                               {"or", PtxOp::kReduceOr}};
      need(3, operands, *i);
      const auto reduction = kReductions.find(m.words.back());
      if (reduction == kReductions.end()) refuse(i->line, "unknown reduction");
      i->op = reduction->second;
      i->out[0] = destination(operands[0], i);
      i->in[0] = source(operands[1], i->line);
      i->in[3] = source(operands[2], i->line);
    } else if (op == "bar" && m.has("warp")) {
      need(1, operands, *i);
      i->op = PtxOp::kSyncWarp;
      i->in[3] = source(operands[0], i->line);
    } else if ((op == "bar" || op == "barrier") && m.has("sync")) {
      if (operands.size() != 1 || operands[0] != "0") refuse(i->line, "a barrier other than the whole block's");
      i->op = PtxOp::kBarrier;
    } else if (op == "bra") {
      need(1, operands, *i);
      i->op = PtxOp::kBranch;
      branches_.emplace_back(static_cast<int32_t>(kernel_->code.size()), operands[0]);
    } else if (op == "ret" || op == "exit") {
      i->op = PtxOp::kReturn;
    } else {
      refuse(i->line, "unknown opcode " + op);
    }
  }

  const std::string& text_;
  size_t at_ = 0;
  int line_ = 1;
  PtxCode code_;
  std::map<std::string, uint64_t> symbols_;
  // Of the kernel at hand:
  bool in_kernel_ = false;
  int depth_ = 0;
  PtxKernel* kernel_ = nullptr;
  std::map<std::string, int64_t> parameters_;  // offsets
  std::map<std::string, int> prefixes_;        // bits, 0 for predicates
  std::map<std::string, int32_t> registers_;
  std::map<std::string, int> predicates_;
  std::map<uint64_t, int32_t> constants_;
  std::map<std::string, int32_t> labels_;
  std::vector<std::pair<int32_t, std::string>> branches_;
};

}  // namespace

PtxCode parse_ptx(const std::string& text) { return Parser(text).run(); }

}  // namespace hostlayer
