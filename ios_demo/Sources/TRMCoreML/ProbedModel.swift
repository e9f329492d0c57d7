import TRMCore

/// A model that can be tried out before a user meets it.
public protocol ProbedModel: StepModel {
    /// Functions that are not used any more, and why.
    var refusals: [String: String] { get }

    /// Runs every function of a depth once, and begins a new text at it. The first call of a function may take long.
    func warmUp(depth: Int) throws

    /// From now on, reads prompts at this depth token by token.
    func refusePrefill(depth: Int, reason: String)
}
