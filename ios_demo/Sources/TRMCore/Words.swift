/// What is said more or less, and what is never said.
///
/// A bias is for words of one token. A ban is for any text, and is about the text and not about tokens: whatever
/// tokens spell it, pieces or single bytes, the last of them is forbidden. It is found in bytes, as these are what
/// every token stands for, and what makes no whole character is written as U+FFFD, which no banned text may hold.
/// A repeated run is about tokens, and is a bias: what would complete it is e^100 times less likely, and comes only
/// where nothing else may.
public struct WordsConfig: Sendable, Codable, Equatable {
    /// "fox=-2.5" adds -2.5 to the logits of fox and of fox after a space, each if it is one token; "#300=-2.5" to
    /// that of id 300.
    public var bias: [String] = []
    /// Texts that must not be written, not even inside a word; letter case counts.
    public var ban: [String] = []
    /// Tokens in a run that is not written if the text so far has it; 0 is off.
    public var noRepeatNgram = 0

    public init(bias: [String] = [], ban: [String] = [], noRepeatNgram: Int = 0) {
        self.bias = bias
        self.ban = ban
        self.noRepeatNgram = noRepeatNgram
    }

    /// Keys that are missing keep their defaults.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.values(CodingKeys.self)
        bias = try values.value(.bias, or: bias)
        ban = try values.value(.ban, or: ban)
        noRepeatNgram = try values.value(.noRepeatNgram, or: noRepeatNgram)
        try check()
    }

    /// Throws the first text that cannot be a bias or a ban, or a run that is out of range.
    public func check() throws {
        for text in bias { _ = try parted(text) }
        for text in ban where text.isEmpty || text.unicodeScalars.contains("\u{FFFD}") {
            let must = "not be empty or hold U+FFFD"
            throw GenerationError.setting(name: "a banned text", must: must, found: "\"\(text)\"")
        }
        guard noRepeatNgram == 0 || noRepeatNgram >= 2 else {
            let name = CodingKeys.noRepeatNgram.rawValue
            let must = "be 0, which is off, or at least 2"
            throw GenerationError.setting(name: name, must: must, found: "\(noRepeatNgram)")
        }
    }

    enum CodingKeys: String, CodingKey {
        case bias, ban
        case noRepeatNgram = "no_repeat_ngram"
    }
}

/// The word and the amount of "word=amount"; the last = parts them.
private func parted(_ text: String) throws -> (word: String, amount: Double) {
    let bytes = Array(text.utf8)
    let digits = Set("0123456789+-.eE".utf8)
    guard let equals = bytes.lastIndex(of: UInt8(ascii: "=")), equals > 0,
        bytes[(equals + 1)...].allSatisfy(digits.contains),
        let amount = Double(String(decoding: bytes[(equals + 1)...], as: UTF8.self)),
        abs(amount) <= SamplingConfig.largest
    else { throw GenerationError.bias(text: text, largest: SamplingConfig.largest) }
    return (String(decoding: bytes[..<equals], as: UTF8.self), amount)
}

/// What a `WordsConfig` means for one tokenizer.
struct Words {
    private var bias: [Int32: Double] = [:]
    private var run = 0  // tokens of a run that comes once; 0 for any
    private var reach = 0  // bytes of the longest ban; 0 without bans
    private var spelled: [[UInt8]] = []  // the bytes of each token
    private var always: [Int32] = []
    private var after: [(begun: [UInt8], ids: [Int32])] = []  // how a text ends, and the ids that then complete a ban
    private let lastControl: Int32

    init(_ settings: WordsConfig, _ codec: some TextCodec) throws {
        try settings.check()
        lastControl = codec.end
        run = settings.noRepeatNgram
        for text in settings.bias {
            let (word, amount) = try parted(text)
            for id in try tokens(of: word, codec) { bias[id, default: 0] += amount }
        }
        guard !settings.ban.isEmpty else { return }
        let pieces = codec.pieceBytes
        guard pieces.count == codec.vocabulary else {
            throw GenerationError.vocabularies(expected: codec.vocabulary, found: pieces.count, place: "tokenizer")
        }
        self.ban(settings.ban.map { Array($0.utf8) }, pieces)
    }

    /// Without biases.
    init(bans: [[UInt8]], pieces: [[UInt8]], lastControl: Int32) {
        self.lastControl = lastControl
        ban(bans, pieces)
    }

    /// What to add to the logits of ids after a text, its prompt included.
    ///
    /// For the same id amounts add up, in the order given and a run's last.
    func biases(after text: [Int32]) -> [Int32: Double] {
        guard run > 0 else { return bias }
        var found = bias
        for id in repeating(text) { found[id, default: 0] -= SamplingConfig.largest }
        return found
    }

    /// The ids that would complete a run that the text has; no run has a control token.
    ///
    /// Source: no_repeat_ngram_size of fairseq and transformers, where such ids are forbidden.
    private func repeating(_ text: [Int32]) -> Set<Int32> {
        let begun = text.suffix(run - 1)
        guard text.count >= run, begun.allSatisfy({ $0 > lastControl }) else { return [] }
        let ends = (run - 1)..<text.count
        let found = ends.lazy.filter { text[$0] > lastControl && text[($0 - run + 1)..<$0] == begun }
        return Set(found.map { text[$0] })
    }

    private mutating func ban(_ bans: [[UInt8]], _ pieces: [[UInt8]]) {
        func ids(where completes: ([UInt8]) -> Bool) -> [Int32] {
            pieces.indices.filter { completes(pieces[$0]) }.map { Int32(truncatingIfNeeded: $0) }
        }
        spelled = pieces
        reach = bans.map(\.count).max() ?? 0
        always = ids { piece in bans.contains { piece.first($0) != nil } }
        for ban in bans {
            for cut in ban.indices.dropFirst() {
                let completing = ids { $0.starts(with: ban[cut...]) }
                if !completing.isEmpty { after.append((Array(ban[..<cut]), completing)) }
            }
        }
    }

    /// The end of a text that has only been read: as much of it as a banned text may begin in.
    ///
    /// A text begins after a control token: what stands before is another turn.
    func tail(_ prompt: [Int32]) -> [UInt8] {
        var tail: [UInt8] = []
        for id in prompt.reversed() {
            if tail.count >= reach || id <= lastControl { break }
            tail = spelled[Int(id)] + tail
        }
        return tail
    }

    /// The tail once a token is written. A control token adds nothing and ends nothing, as in decoding.
    func grown(_ tail: [UInt8], _ id: Int32) -> [UInt8] {
        reach > 0 ? Array((tail + spelled[Int(id)]).suffix(reach)) : tail
    }

    /// The ids that would complete a banned text after a text with this tail; never an end token.
    func banned(_ tail: [UInt8]) -> [Int32] {
        always + after.lazy.filter { tail.ends($0.begun) }.flatMap(\.ids)
    }
}

/// The tokens of "#id", or those that are the word alone: as it stands, and after a space if it begins with none.
private func tokens(of word: String, _ codec: some TextCodec) throws -> [Int32] {
    let bytes = Array(word.utf8)
    let digits = bytes.dropFirst()
    if bytes.first == UInt8(ascii: "#"), !digits.isEmpty, digits.allSatisfy({ (0x30...0x39).contains($0) }) {
        let id = Int(String(decoding: digits, as: UTF8.self)) ?? .max
        guard id < codec.vocabulary, let token = Int32(exactly: id) else {
            throw GenerationError.token(id: id, vocabulary: codec.vocabulary, place: "biases")
        }
        return [token]
    }
    let forms = bytes.first == UInt8(ascii: " ") ? [word] : [word, " " + word]
    let found = try forms.map(codec.encode)
    let single = found.filter { $0.count == 1 }.flatMap { $0 }
    guard !single.isEmpty else { throw GenerationError.biasTokens(word: word, tokens: found.last ?? []) }
    return single
}
