import Foundation
import TRMCore

/// A whole text with its times; the keys are those of `python -m trm_mlx.generate --json`.
struct Reply: Encodable {
    let prompt: String
    let model: String
    let sampling: SamplingConfig
    let words: WordsConfig
    private(set) var text = ""
    private(set) var tokens: [Int32] = []
    private(set) var depth = 0
    private(set) var reason = StopReason.stopped
    private(set) var promptTokens = 0
    private(set) var secondsToFirst = 0.0
    private(set) var seconds = 0.0
    private(set) var tokensPerSecond = 0.0

    init(prompt: String, model: String, _ settings: GenerationSettings) {
        (self.prompt, self.model, sampling, words) = (prompt, model, settings.sampling, settings.words)
    }

    mutating func add(_ id: Int32, _ more: String) {
        tokens.append(id)
        text += more
    }

    mutating func end(_ summary: GenerationSummary) {
        (depth, reason, promptTokens) = (summary.depth, summary.reason, summary.promptTokens)
        let first = summary.firstNanoseconds ?? 0
        secondsToFirst = Double(first) / 1e9
        seconds = Double(first + summary.tokenNanoseconds.reduce(0, +)) / 1e9
        tokensPerSecond = summary.tokensPerSecond
    }

    /// The times for people.
    var line: String {
        let times = String(
            format: "%d tokens  %.0f tokens_per_s  first token after %.0f ms", tokens.count, tokensPerSecond,
            secondsToFirst * 1000)
        return "\(times)  stopped by \(reason.rawValue)"
    }

    func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(self) + Data("\n".utf8)
    }

    private enum CodingKeys: String, CodingKey {
        case prompt, model, sampling, words, text, tokens, depth, reason, seconds
        case promptTokens = "prompt_tokens"
        case secondsToFirst = "seconds_to_first"
        case tokensPerSecond = "tokens_per_second"
    }
}
