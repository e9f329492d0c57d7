/// One token that may be picked.
struct Candidate {
    var logit: Double
    var id: Int32

    /// Whether this one comes first: by (logit descending, id ascending). Zero and minus zero are equal.
    func precedes(_ other: Candidate) -> Bool {
        logit > other.logit || (logit == other.logit && id < other.id)
    }
}

/// Candidates in order, only the first `topK` of them unless `topK` is 0.
///
/// - Parameter values: one for each id, without NaN.
func rank(_ values: [Double], _ topK: Int) -> [Candidate] {
    guard 0 < topK, topK < values.count else {
        let all = values.enumerated().map { Candidate(logit: $1, id: Int32(truncatingIfNeeded: $0)) }
        return all.sorted { $0.precedes($1) }
    }
    // A heap with the last of those kept on top. Ids ascend, so a later equal never displaces an earlier one.
    var heap = (0..<topK).map { Candidate(logit: values[$0], id: Int32(truncatingIfNeeded: $0)) }
    for place in stride(from: topK / 2 - 1, through: 0, by: -1) { sink(&heap, place) }
    for place in topK..<values.count where values[place] > heap[0].logit {
        heap[0] = Candidate(logit: values[place], id: Int32(truncatingIfNeeded: place))
        sink(&heap, 0)
    }
    return heap.sorted { $0.precedes($1) }
}

/// Moves the candidate at a place down until none below it comes after it.
private func sink(_ heap: inout [Candidate], _ start: Int) {
    let moved = heap[start]
    var place = start
    while true {
        var below = 2 * place + 1
        guard below < heap.count else { break }
        if below + 1 < heap.count, heap[below].precedes(heap[below + 1]) { below += 1 }
        guard moved.precedes(heap[below]) else { break }
        heap[place] = heap[below]
        place = below
    }
    heap[place] = moved
}
