/// A model without weights: its scores are a hash of the depth and of every token so far, in their order.
///
/// A wrong position, a token lost or read twice, or something left of an older text changes every score after it,
/// so it tests and times all that stands around a model. `tests/golden/make_loop.py` says the same in Python.
public final class TableStepModel: StepModel {
    public let vocabulary: Int
    public let context: Int
    public let depths: [Int]
    public private(set) var position = 0
    private let seed: UInt64
    private var state: UInt64

    /// - Parameters:
    ///   - depths: ascending.
    ///   - seed: another seed is another model.
    public init(vocabulary: Int, context: Int, depths: [Int] = [1], seed: UInt64 = 0) {
        self.vocabulary = max(vocabulary, 1)
        self.context = context
        self.depths = depths
        self.seed = seed
        state = seed
    }

    public func reset(depth: Int) throws {
        guard depths.contains(depth) else { throw GenerationError.depth(found: depth, allowed: depths) }
        state = SplitMix64.number(seed: seed, step: UInt64(truncatingIfNeeded: depth))
        position = 0
    }

    /// Scores from -8 to below 8, exact in a `Float`: the top 24 bits of what the state becomes with each token.
    public func append(_ tokens: [Int32]) throws -> [Float] {
        try check(tokens)
        for token in tokens { state = SplitMix64.number(seed: state, step: UInt64(truncatingIfNeeded: token)) }
        position += tokens.count
        return (0..<vocabulary).map { id in
            Float(SplitMix64.number(seed: state, step: UInt64(truncatingIfNeeded: id)) >> 40) * 0x1p-20 - 8
        }
    }
}
