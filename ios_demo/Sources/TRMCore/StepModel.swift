/// A language model in the middle of one text.
///
/// Not `Sendable` by design: it is made inside one actor and never leaves it, so that calls cannot overlap.
public protocol StepModel: AnyObject {
    /// Number of token ids, and of scores.
    var vocabulary: Int { get }
    /// Most tokens of a text.
    var context: Int { get }
    /// Depths (passes through the core) that a text can be read at, ascending.
    var depths: [Int] { get }
    /// Tokens of the text so far.
    var position: Int { get }

    /// Begins a new text, to be read with `depth` passes.
    func reset(depth: Int) throws

    /// Adds tokens to the text.
    ///
    /// - Parameter tokens: at least one; ids below `vocabulary`; they fit the context.
    /// - Returns: `vocabulary` scores of the token after the last.
    func append(_ tokens: [Int32]) throws -> [Float]
}

extension StepModel {
    /// Throws if these are not what `append` takes.
    public func check(_ tokens: [Int32]) throws {
        guard 1 <= tokens.count, tokens.count <= context - position else {
            throw GenerationError.room(position: position, added: tokens.count, context: context)
        }
        if let id = tokens.first(where: { $0 < 0 || Int($0) >= vocabulary }) {
            throw GenerationError.token(id: Int(id), vocabulary: vocabulary, place: "text")
        }
    }
}
