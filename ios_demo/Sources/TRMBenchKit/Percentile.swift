import Foundation

/// How a quantity is spread.
public struct Distribution: Codable, Equatable, Sendable {
    public let n: Int
    public let min, p50, p90, p95, max, mean: Double

    /// nil for no values.
    init?(_ values: [Double]) {
        let ordered = values.sorted()
        guard let first = ordered.first, let last = ordered.last else { return nil }
        (n, min, max) = (ordered.count, first, last)
        (p50, p90, p95) = (percentile(50, of: ordered), percentile(90, of: ordered), percentile(95, of: ordered))
        mean = ordered.reduce(0, +) / Double(n)
    }
}

/// NumPy's `percentile` with its default, linear method, bit for bit.
///
/// - Parameter ordered: ascending, and not empty.
func percentile(_ percent: Double, of ordered: [Double]) -> Double {
    let place = percent / 100 * Double(ordered.count - 1)
    let index = Int(place.rounded(.down))
    let (low, high) = (ordered[index], ordered[min(index + 1, ordered.count - 1)])
    let share = place - Double(index)
    // NumPy goes from the nearer end, so that the share 1 gives the upper value itself.
    return share < 0.5 ? low + (high - low) * share : high - (high - low) * (1 - share)
}
