import Foundation

/// What Core ML, or a package, does not do.
public enum CoreMLError: Error, Equatable, Sendable {
    case notLoaded(function: String, units: ComputeUnits, reason: String)
    case notRun(function: String, position: Int, reason: String)
    /// A function does not take or give what the manifest says.
    case otherInterface(function: String, feature: String, wanted: String, got: String)
    case unknownDepth(Int, known: [Int])
    case noTokens
    case tokenOutOfRange(Int, vocabulary: Int)
    case tooLong(tokens: Int, position: Int, context: Int)
}

extension CoreMLError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .notLoaded(let function, let units, let reason):
            "Core ML does not load \(function) on \(units.name): \(reason)"
        case .notRun(let function, let position, let reason):
            "Core ML stopped in \(function) at token \(position): \(reason)"
        case .otherInterface(let function, let feature, let wanted, let got):
            "The model does not match its manifest: \(function) must have \(feature) \(wanted), and has \(got). "
                + "Export it again."
        case .unknownDepth(let depth, let known): "The model has no depth \(depth), only \(known)."
        case .noTokens: "There are no tokens to read."
        case .tokenOutOfRange(let id, let vocabulary):
            "Token ids must be from 0 to \(vocabulary - 1), and one is \(id)."
        case .tooLong(let tokens, let position, let context):
            "The model reads at most \(context) tokens, and \(position) + \(tokens) are too many. Begin a new text."
        }
    }
}
