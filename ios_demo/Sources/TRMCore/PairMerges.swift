/// Which two neighbours a BPE vocabulary joins, and which pair goes first.
///
/// A symbol is the id of a piece, or, of a character that is no piece, the complement of its scalar.
struct PairMerges: Sendable {
    struct Merge: Sendable {
        /// 0 for the highest score; equal scores have one rank.
        let rank: Int32
        let symbol: Int32
    }

    private let characters: [UInt32: Int32]
    private let merges: [UInt64: Merge]

    /// Any two symbols whose joined bytes are a piece are a pair, not only those that training joined.
    init(_ pieces: [TokenizerModel.Piece]) {
        let learnt = pieces.indices.filter { pieces[$0].kind == .normal }
        let symbols = Dictionary(learnt.map { (pieces[$0].bytes, Int32($0)) }) { first, _ in first }
        let scores = Set(learnt.map { pieces[$0].score }).sorted(by: >)
        let ranks = Dictionary(zip(scores, Int32(0)...)) { first, _ in first }
        var characters: [UInt32: Int32] = [:]
        var merges: [UInt64: Merge] = [:]
        for place in learnt {
            let bytes = pieces[place].bytes
            if let (value, size) = UTF8Scan.scalar(in: bytes, at: 0), size == bytes.count {
                characters[value] = Int32(place)
            }
            for cut in bytes.indices.dropFirst() where !UTF8Scan.isContinuation(bytes[cut]) {
                if let left = Self.symbol(of: Array(bytes[..<cut]), symbols),
                    let right = Self.symbol(of: Array(bytes[cut...]), symbols),
                    let rank = ranks[pieces[place].score]
                {
                    merges[Self.key(left, right)] = Merge(rank: rank, symbol: Int32(place))
                }
            }
        }
        self.characters = characters
        self.merges = merges
    }

    func symbol(of scalar: UInt32) -> Int32 {
        characters[scalar] ?? ~Int32(truncatingIfNeeded: scalar)
    }

    func merge(_ left: Int32, _ right: Int32) -> Merge? {
        merges[Self.key(left, right)]
    }

    private static func symbol(of bytes: [UInt8], _ symbols: [[UInt8]: Int32]) -> Int32? {
        if let symbol = symbols[bytes] { return symbol }
        guard let (value, size) = UTF8Scan.scalar(in: bytes, at: 0), size == bytes.count else { return nil }
        return ~Int32(truncatingIfNeeded: value)
    }

    private static func key(_ left: Int32, _ right: Int32) -> UInt64 {
        UInt64(UInt32(bitPattern: left)) << 32 | UInt64(UInt32(bitPattern: right))
    }
}

/// One word while its symbols are joined: best rank first, then leftmost; n symbols take n log n steps.
struct Word {
    private struct Link {
        var symbol: Int32
        var previous: Int
        var next: Int
    }

    private struct Candidate {
        let rank: Int32
        let left: Int
        let right: Int
        let leftSymbol: Int32
        let rightSymbol: Int32
        let joined: Int32

        func isBefore(_ other: Candidate) -> Bool {
            rank != other.rank ? rank < other.rank : left < other.left
        }
    }

    private static let none = -1
    private static let gone = Int32.min

    private let merges: PairMerges
    private var links: [Link] = []
    private var heap: [Candidate] = []

    init(_ merges: PairMerges) {
        self.merges = merges
    }

    mutating func append(_ symbol: Int32) {
        links.append(Link(symbol: symbol, previous: links.count - 1, next: links.count + 1))
    }

    /// Joins what can be joined, gives the symbols that are left, and is empty again.
    mutating func take(_ receive: (Int32) -> Void) {
        guard !links.isEmpty else { return }
        links[links.count - 1].next = Self.none
        for right in links.indices.dropFirst() { propose(right - 1, right) }
        while let best = pop() {
            // A symbol only ever grows, so an equal one is the one that was proposed.
            guard links[best.left].symbol == best.leftSymbol, links[best.right].symbol == best.rightSymbol else {
                continue
            }
            let next = links[best.right].next
            links[best.left].symbol = best.joined
            links[best.left].next = next
            links[best.right].symbol = Self.gone
            if next != Self.none { links[next].previous = best.left }
            propose(links[best.left].previous, best.left)
            propose(best.left, next)
        }
        for link in links where link.symbol != Self.gone { receive(link.symbol) }
        links.removeAll(keepingCapacity: true)
    }

    private mutating func propose(_ left: Int, _ right: Int) {
        guard left != Self.none, right != Self.none else { return }
        let (first, second) = (links[left].symbol, links[right].symbol)
        guard let merge = merges.merge(first, second) else { return }
        push(
            Candidate(
                rank: merge.rank, left: left, right: right, leftSymbol: first, rightSymbol: second,
                joined: merge.symbol))
    }

    private mutating func push(_ candidate: Candidate) {
        heap.append(candidate)
        var place = heap.count - 1
        while place > 0 {
            let parent = (place - 1) / 2
            guard candidate.isBefore(heap[parent]) else { break }
            heap[place] = heap[parent]
            place = parent
        }
        heap[place] = candidate
    }

    private mutating func pop() -> Candidate? {
        guard let best = heap.first, let last = heap.popLast() else { return nil }
        if heap.isEmpty { return best }
        var place = 0
        while true {
            var child = 2 * place + 1
            if child >= heap.count { break }
            if child + 1 < heap.count, heap[child + 1].isBefore(heap[child]) { child += 1 }
            guard heap[child].isBefore(last) else { break }
            heap[place] = heap[child]
            place = child
        }
        heap[place] = last
        return best
    }
}
