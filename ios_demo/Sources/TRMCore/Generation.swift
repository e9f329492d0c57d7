import Foundation
import Synchronization

/// How much is written, how deep the model thinks, and how each token is picked.
public struct GenerationSettings: Sendable, Codable, Equatable {
    /// Most tokens to write.
    public var maxTokens = 256
    /// Passes through the core, nil for the most the model has.
    public var depth: Int?
    /// Texts at which to stop; they are not written.
    public var stop: [String] = []
    public var sampling = SamplingConfig()
    public var words = WordsConfig()

    public init(
        maxTokens: Int = 256, depth: Int? = nil, stop: [String] = [], sampling: SamplingConfig = SamplingConfig(),
        words: WordsConfig = WordsConfig()
    ) {
        self.maxTokens = maxTokens
        self.depth = depth
        self.stop = stop
        self.sampling = sampling
        self.words = words
    }

    /// Keys that are missing keep their defaults.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.values(CodingKeys.self)
        maxTokens = try values.value(.maxTokens, or: maxTokens)
        depth = try values.decodeIfPresent(Int.self, forKey: .depth)
        stop = try values.value(.stop, or: stop)
        sampling = try values.value(.sampling, or: sampling)
        words = try values.value(.words, or: words)
        try check()
    }

    /// Throws the first setting that makes no sense for any model.
    public func check() throws {
        guard maxTokens >= 1 else {
            throw GenerationError.setting(name: "max_tokens", must: "be at least 1", found: "\(maxTokens)")
        }
        guard !stop.contains(where: \.isEmpty) else {
            throw GenerationError.setting(name: "a stop text", must: "not be empty", found: "\"\"")
        }
        try sampling.check()
        try words.check()
    }

    enum CodingKeys: String, CodingKey {
        case depth, stop, sampling, words
        case maxTokens = "max_tokens"
    }
}

/// Why a text ended; the first four are Python's.
public enum StopReason: String, Sendable, Codable, CaseIterable {
    /// An end token was chosen.
    case end
    /// A stop text came.
    case stop
    /// `maxTokens` are written.
    case length
    /// The model has no more positions.
    case context
    /// The user stopped it.
    case stopped
    /// The device is too hot.
    case thermal
    /// The app left the foreground.
    case background
}

/// Asks a running text to stop, from anywhere; what was written stays, and its summary comes.
///
/// One signal is for one text. Cancelling the task that reads the text stops it too, but then nobody hears the summary.
public final class StopSignal: Sendable {
    /// Who asks.
    public enum Cause: UInt8, Sendable {
        case stopped = 1
        case thermal
        case background

        var reason: StopReason {
            switch self {
            case .stopped: .stopped
            case .thermal: .thermal
            case .background: .background
            }
        }
    }

    private let state = Atomic<UInt8>(0)

    public init() {}

    /// Stop after the token, or the piece of the prompt, that is being computed. The first cause stays.
    public func stop(_ cause: Cause = .stopped) {
        _ = state.compareExchange(expected: 0, desired: cause.rawValue, ordering: .acquiringAndReleasing)
    }

    /// Why to stop, nil if to go on.
    public var cause: Cause? { Cause(rawValue: state.load(ordering: .acquiring)) }
}

/// What comes while a text is written: tokens, then one summary.
public enum GenerationEvent: Sendable, Equatable {
    /// One token written, and the text it made certain; the last one brings all that was held back.
    case token(Int32, text: String)
    case finished(GenerationSummary)
}

/// A whole text in numbers.
public struct GenerationSummary: Sendable, Codable, Equatable {
    public var reason: StopReason
    /// Tokens of the prompt.
    public var promptTokens: Int
    /// Passes through the core.
    public var depth: Int
    /// Tokens written, an end token included.
    public var tokens: Int
    /// From the start to the scores after the prompt; nil if it stopped before.
    public var prefillNanoseconds: Int64?
    /// From the start to the first token; nil if none came.
    public var firstNanoseconds: Int64?
    /// From each token to the next: one fewer than the tokens.
    public var tokenNanoseconds: [Int64]

    /// Tokens after the first, over the time since the first.
    public var tokensPerSecond: Double {
        let total = tokenNanoseconds.reduce(0, +)
        return total > 0 ? Double(tokenNanoseconds.count) * 1e9 / Double(total) : 0
    }
}

/// What a model can take.
public struct ModelLimits: Sendable, Equatable {
    /// Number of token ids.
    public let vocabulary: Int
    /// Most tokens of a text.
    public let context: Int
    /// Depths that a text can be read at, ascending.
    public let depths: [Int]
}
