import TRMCore

/// What `trm-bench generate` is asked for; the flags are those of `python -m trm_mlx.generate`.
public struct GenerateOptions: Equatable, Sendable {
    public static let help = """
        usage: trm-bench generate --model DIR [options]

          --model DIR             model folder, or on Apple's systems an export folder
          --prompt TEXT           how the text begins (default: from --prompt-file or standard input)
          --prompt-file FILE      file to read the prompt from, - for standard input
          --chat                  give the prompt as a user's message, and print only the reply
          --json                  print one JSON object when done, instead of streaming text
          --max-tokens N          most tokens to write (default: 256)
          --depth R               passes through the core (default: all)
          --stop TEXT             text at which to stop; it is not written; may be given again
          --temperature X         divides the logits; 0 is greedy (default: 0.8)
          --top-k N               keep this many of the most likely tokens; 0 keeps all (default: 40)
          --top-p X               keep the fewest tokens that hold this share of probability (default: 1)
          --min-p X               keep tokens at least this likely relative to the likeliest (default: 0)
          --typical-p X           keep the tokens of most usual surprise that hold this share (default: 1)
          --repetition-penalty X  above 1 makes tokens of the text so far less likely (default: 1)
          --presence-penalty X    taken from the logit of each token of the text so far, once (default: 0)
          --frequency-penalty X   taken from it for every time it came (default: 0)
          --seed N                64-bit number that fixes every draw (default: 0)
          --bias WORD=X           added to the logits of a word of one token, or of "#ID"; may be given again
          --ban TEXT              never written, whatever tokens spell it; may be given again
          --no-repeat-ngram N     tokens in a run that is not written if the text so far has it (default: 0, off)

        Text goes to standard output as it comes, times to standard error. Ctrl-C stops it and keeps what was written.
        Exits with 0 when done, 2 if asked wrongly, 3 if this machine cannot, 130 after Ctrl-C, 1 on failure.
        """

    public let model: String
    public let prompt: String?
    /// A file, or `-`.
    public let promptFile: String?
    public let chat: Bool
    public let json: Bool
    public let settings: GenerationSettings

    /// - Throws: `UsageError`, or `GenerationError`: a setting is out of its range.
    public init(_ words: [String]) throws {
        let found = try Arguments(
            words,
            valued: [
                "--model", "--prompt", "--prompt-file", "--max-tokens", "--depth", "--temperature", "--top-k",
                "--top-p", "--min-p", "--typical-p", "--repetition-penalty", "--presence-penalty",
                "--frequency-penalty", "--seed", "--no-repeat-ngram",
            ], listed: ["--stop", "--bias", "--ban"], plain: ["--chat", "--json"])
        guard let folder = try found.name("--model") else { throw UsageError("give --model DIR; see --help") }
        model = folder
        prompt = found.texts("--prompt").first
        promptFile = try found.name("--prompt-file")
        guard prompt == nil || promptFile == nil else {
            throw UsageError("give --prompt or --prompt-file, not both")
        }
        chat = found.flags.contains("--chat")
        json = found.flags.contains("--json")
        settings = try Self.settings(found)
    }

    private static func settings(_ found: Arguments) throws -> GenerationSettings {
        var (made, draw) = (GenerationSettings(), SamplingConfig())
        func set<Number: LosslessStringConvertible>(_ value: inout Number, _ flag: String, _ kind: String) throws {
            value = try found.number(flag, as: kind) ?? value
        }
        let (count, number) = ("a whole number", "a number")
        try set(&made.maxTokens, "--max-tokens", count)
        made.depth = try found.number("--depth", as: count)
        try set(&draw.temperature, "--temperature", number)
        try set(&draw.topK, "--top-k", count)
        try set(&draw.topP, "--top-p", number)
        try set(&draw.minP, "--min-p", number)
        try set(&draw.typicalP, "--typical-p", number)
        try set(&draw.repetitionPenalty, "--repetition-penalty", number)
        try set(&draw.presencePenalty, "--presence-penalty", number)
        try set(&draw.frequencyPenalty, "--frequency-penalty", number)
        try set(&draw.seed, "--seed", "a whole number from 0 to 2^64 - 1")
        made.sampling = draw
        made.stop = found.texts("--stop")
        made.words = WordsConfig(bias: found.texts("--bias"), ban: found.texts("--ban"))
        try set(&made.words.noRepeatNgram, "--no-repeat-ngram", count)
        try made.check()
        return made
    }
}
