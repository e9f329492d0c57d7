import Foundation

/// Why there is no engine.
public enum EngineError: Error, Equatable, Sendable {
    case noSelfTest
    /// A score of a step is no number.
    case notNumbers(step: Int)
    /// The likeliest token of a step is none of those that the reference found likeliest.
    case wrongAnswer(step: Int, got: Int, wanted: [Int])
    case notCompiled(reason: String)
    case nothingWorks([SkippedUnits])
}

/// Compute units that a model does not run on here.
public struct SkippedUnits: Equatable, Sendable {
    public enum Reason: Equatable, Sendable {
        /// The app ended while it tried them, the last time.
        case crashed
        case failed(String)
    }

    public let units: ComputeUnits
    public let reason: Reason

    /// For people.
    public var sentence: String {
        switch reason {
        case .crashed: "\(units.name): skipped, because the app ended while it tried this before."
        case .failed(let words): "\(units.name): \(words)"
        }
    }
}

extension EngineError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .noSelfTest: "The model has no self-test, so that it cannot be trusted. Export it again."
        case .notNumbers(let step): "The self-test failed: step \(step) gave scores that are no numbers."
        case .wrongAnswer(let step, let got, let wanted):
            "The self-test failed: step \(step) gave token \(got) instead of one of \(wanted)."
        case .notCompiled(let reason): "Core ML could not prepare the model: \(reason)"
        case .nothingWorks(let skipped):
            (["The model runs on no processor of this device."] + skipped.map(\.sentence)).joined(separator: " ")
        }
    }
}
