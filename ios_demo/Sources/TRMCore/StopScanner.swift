/// Passes text on up to the first stop text, holding back what may yet become one.
///
/// The first is the one that ends first, so that it does not matter how the text comes in pieces. All is done in
/// UTF-8, since `String` takes different characters for equal; no text ends inside a character.
struct StopScanner {
    private let stops: [[UInt8]]
    private var held: [UInt8] = []
    /// Whether a stop text came.
    private(set) var found = false

    /// - Parameter stops: none of them empty.
    init(_ stops: [String]) { self.stops = stops.map { Array($0.utf8) } }

    /// The text that is certainly not part of a stop text.
    mutating func push(_ text: String) -> String {
        guard !found else { return "" }
        held += text.utf8
        let places = stops.compactMap { stop in held.first(stop).map { ($0 + stop.count, $0) } }
        if let (_, start) = places.min(by: <) {
            found = true
            let text = String(decoding: held[..<start], as: UTF8.self)
            held = []
            return text
        }
        return release(stops.map(overlap).max() ?? 0)
    }

    /// The text still held back.
    mutating func finish() -> String { release(0) }

    private mutating func release(_ kept: Int) -> String {
        let cut = held.count - kept
        defer { held.removeFirst(cut) }
        return String(decoding: held[..<cut], as: UTF8.self)
    }

    /// Longest end of the held text that begins the stop text.
    private func overlap(_ stop: [UInt8]) -> Int {
        let longest = min(held.count, stop.count - 1)
        return stride(from: longest, to: 0, by: -1).first { held.ends(stop.prefix($0)) } ?? 0
    }
}

extension [UInt8] {
    /// The place of the first occurrence.
    func first(_ other: [UInt8]) -> Int? {
        guard other.count <= count else { return nil }
        return (0...(count - other.count)).first { self[$0...].starts(with: other) }
    }

    func ends(_ other: some BidirectionalCollection<UInt8>) -> Bool {
        suffix(other.count).elementsEqual(other)
    }
}
