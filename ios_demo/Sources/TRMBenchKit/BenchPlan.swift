import Foundation
import TRMCore

/// How it is measured; the protocol is that of `trm_mlx/trials.py`.
///
/// Ids are given and drawn from SplitMix64, so no tokenizer is timed; decoding is greedy and the end of text is
/// ignored; warm-ups are not kept; every trial keeps the nanoseconds that the clock gave.
public struct BenchPlan: Equatable, Sendable {
    public let promptTokens: Int
    public let newTokens: Int
    public let trials: Int
    public let warmup: Int
    /// Seconds between two trials.
    public let cooldown: Double
    public let seed: UInt64
    /// Seconds of writing without a pause after the trials; 0: none.
    public let sustained: Double

    /// Control tokens, which come first in every vocabulary.
    static let controls = 7

    /// - Throws: `BenchError.plan`: a number is out of its range.
    public init(
        promptTokens: Int = 128, newTokens: Int = 256, trials: Int = 10, warmup: Int = 2, cooldown: Double = 5,
        seed: UInt64 = 0, sustained: Double = 0
    ) throws {
        let least = [
            ("prompt tokens", promptTokens, 1), ("new tokens", newTokens, 2), ("trials", trials, 1),
            ("warmup", warmup, 0),
        ]
        for (name, value, least) in least where !(least...1 << 20).contains(value) {
            throw BenchError.plan("\(name) must be \(least) to \(1 << 20), got \(value)")
        }
        for (name, value) in [("cooldown", cooldown), ("sustained", sustained)] where !(0...86_400).contains(value) {
            throw BenchError.plan("\(name) must be 0 to 86400 seconds, got \(value)")
        }
        (self.promptTokens, self.newTokens, self.trials, self.warmup) = (promptTokens, newTokens, trials, warmup)
        (self.cooldown, self.seed, self.sustained) = (cooldown, seed, sustained)
    }

    /// Refuses a model whose context the texts do not fit.
    public func check(context: Int) throws {
        guard promptTokens + newTokens <= context else {
            throw BenchError.plan(
                "prompt and new tokens must fit the context of \(context), got \(promptTokens) and \(newTokens)")
        }
    }

    /// Ids of a prompt, none of them a control token: outputs of SplitMix64 modulo what is left.
    public func prompt(vocabulary: Int) throws -> [Int32] {
        guard vocabulary > Self.controls, vocabulary <= 1 << 24 else {
            throw BenchError.plan("vocabulary must be above \(Self.controls), got \(vocabulary)")
        }
        let left = UInt64(vocabulary - Self.controls)
        return (0..<UInt64(promptTokens)).map {
            Int32(Self.controls) + Int32(SplitMix64.number(seed: seed, step: $0) % left)
        }
    }
}

/// Why there is no measurement.
public enum BenchError: Error, Equatable {
    case plan(String)
    case noTokens
    case changed
}

extension BenchError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .plan(let reason): "\(reason.prefix(1).uppercased())\(reason.dropFirst())."
        case .noTokens: "The scores of the first token must be numbers, got NaN or infinity in every trial."
        case .changed: "The model changed while it was measured; measure a copy."
        }
    }
}
