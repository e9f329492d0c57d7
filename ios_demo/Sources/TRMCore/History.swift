/// The distinct ids of a text so far, and how often each came; adding one costs the same in any text.
public struct History: Sendable {
    /// Every id lies below it.
    public let vocabulary: Int
    /// The distinct ids, in order of first appearance.
    public private(set) var ids: [Int32] = []
    private var counts: [Int]

    /// - Parameter ids: tokens to begin with, repeats welcome.
    public init(vocabulary: Int, ids: some Sequence<Int32> = []) throws {
        self.vocabulary = vocabulary
        counts = Array(repeating: 0, count: max(vocabulary, 0))
        for id in ids { try add(id) }
    }

    /// Remember one token of the text.
    public mutating func add(_ id: Int32) throws {
        guard counts.indices.contains(Int(id)) else {
            throw GenerationError.token(id: Int(id), vocabulary: vocabulary, place: "history")
        }
        if counts[Int(id)] == 0 { ids.append(id) }
        counts[Int(id)] += 1
    }

    /// Make the ids less likely, in place.
    ///
    /// A logit above 0 is divided by the repetition penalty, any other multiplied; then
    /// presence + frequency * count is taken from it.
    ///
    /// Source: repetition: CTRL, arXiv 1909.05858, section 4.1 (negative logits are multiplied, as is usual since);
    /// presence and frequency: the OpenAI API, "frequency and presence penalties", which leaves the prompt out.
    func penalize(_ logits: inout [Double], _ settings: SamplingConfig) throws {
        guard vocabulary == logits.count else {
            throw GenerationError.vocabularies(expected: logits.count, found: vocabulary, place: "history")
        }
        let (repetition, presence) = (settings.repetitionPenalty, settings.presencePenalty)
        let frequency = settings.frequencyPenalty
        for id in ids.lazy.map(Int.init) {
            var logit = logits[id]
            if repetition != 1 { logit = logit > 0 ? logit / repetition : logit * repetition }
            if presence != 0 || frequency != 0 { logit -= presence + frequency * Double(counts[id]) }
            logits[id] = logit
        }
    }
}
