/// A text in the making, all but the model: picks tokens from scores, turns them into text, and knows when to stop.
struct Draft {
    private let sampler: Sampler
    private let words: Words
    private let ends: [Int32]
    private let maxTokens: Int
    private var text: [Int32]  // the prompt's tokens included
    private var history: History?
    private var tail: [UInt8]
    private var decoder: any TextStream
    private var scanner: StopScanner
    private var step = 0

    init(_ prompt: [Int32], _ settings: GenerationSettings, _ codec: some TextCodec) throws {
        try settings.check()
        sampler = try Sampler(settings.sampling)
        words = try Words(settings.words, codec)
        ends = [codec.eos, codec.end]
        maxTokens = settings.maxTokens
        text = prompt
        history = settings.sampling.remembers ? try History(vocabulary: codec.vocabulary, ids: prompt) : nil
        tail = words.tail(prompt)
        decoder = try codec.stream()
        scanner = StopScanner(settings.stop)
    }

    /// The next token; `add` must follow.
    func choose(_ scores: [Float]) throws -> Int32 {
        let (bias, banned) = (words.biases(after: text), words.banned(tail))
        return try sampler.sample(logits: scores, step: step, history: history, bias: bias, banned: banned)
    }

    /// Writes a token.
    ///
    /// - Parameter otherwise: why to stop if nothing in the text says so, nil to go on.
    /// - Returns: the text it made certain, all of it if this was the last token; and why it was.
    mutating func add(_ id: Int32, or otherwise: StopReason?) throws -> (text: String, reason: StopReason?) {
        if ends.contains(id) { return (try rest(), .end) }
        try history?.add(id)
        text.append(id)
        tail = words.grown(tail, id)
        step += 1
        let certain = try scanner.push(decoder.push(id))
        let reason = scanner.found ? .stop : step == maxTokens ? .length : otherwise
        guard let reason else { return (certain, nil) }
        let whole = certain + (try rest())
        return (whole, scanner.found ? .stop : reason)
    }

    private mutating func rest() throws -> String { try scanner.push(decoder.finish()) + scanner.finish() }
}
