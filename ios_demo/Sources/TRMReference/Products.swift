import Foundation

/// A matrix of float32, row by row.
struct Matrix {
    let rows, columns: Int
    let values: [Float]

    func row(_ index: Int) -> [Float] { Array(values[index * columns..<(index + 1) * columns]) }

    /// y = x W^T
    func multiply(_ x: [Float], into y: inout [Float]) {
        eachRow(x) { y[$0] = $1 }
    }

    /// y = y + x W^T
    func multiply(_ x: [Float], addingTo y: inout [Float]) {
        eachRow(x) { y[$0] += $1 }
    }

    @inline(__always)
    private func eachRow(_ x: [Float], _ body: (Int, Float) -> Void) {
        x.withUnsafeBufferPointer { x in
            let x = UnsafeBufferPointer(rebasing: x[..<columns])
            values.withUnsafeBufferPointer { values in
                for row in 0..<rows {
                    body(row, dot(UnsafeBufferPointer(rebasing: values[row * columns..<(row + 1) * columns]), x))
                }
            }
        }
    }
}

/// The sum of products of two vectors of one length, in 16 running sums that the processor adds at once.
@inline(__always)
func dot(_ a: UnsafeBufferPointer<Float>, _ b: UnsafeBufferPointer<Float>) -> Float {
    let (a, b, count) = (UnsafeRawBufferPointer(a), UnsafeRawBufferPointer(b), a.count)
    var (low, high) = (SIMD8<Float>(), SIMD8<Float>())
    var place = 0
    while place + 16 <= count {
        low +=
            a.loadUnaligned(fromByteOffset: 4 * place, as: SIMD8<Float>.self)
            * b.loadUnaligned(fromByteOffset: 4 * place, as: SIMD8<Float>.self)
        high +=
            a.loadUnaligned(fromByteOffset: 4 * place + 32, as: SIMD8<Float>.self)
            * b.loadUnaligned(fromByteOffset: 4 * place + 32, as: SIMD8<Float>.self)
        place += 16
    }
    var rest: Float = 0
    while place < count {
        rest +=
            a.loadUnaligned(fromByteOffset: 4 * place, as: Float.self)
            * b.loadUnaligned(fromByteOffset: 4 * place, as: Float.self)
        place += 1
    }
    return (low + high).sum() + rest
}

/// y = rms(x) * gain
func normalise(_ x: [Float], _ gain: [Float]?, into y: inout [Float]) {
    let factor = x.withUnsafeBufferPointer { inverse(of: $0) }
    for m in x.indices { y[m] = x[m] * factor * (gain?[m] ?? 1) }
}

/// The numbers of a head, that starts at `start`, become rms of them times the gain.
func normalise(_ x: inout [Float], at start: Int, _ gain: [Float]) {
    let factor = x.withUnsafeBufferPointer {
        inverse(of: UnsafeBufferPointer(rebasing: $0[start..<start + gain.count]))
    }
    for m in gain.indices { x[start + m] *= factor * gain[m] }
}

private func inverse(of x: UnsafeBufferPointer<Float>) -> Float {
    1 / (dot(x, x) / Float(x.count) + 0.00001).squareRoot()
}

/// Replaces the first `count` scores by e to them, less the largest; gives their sum.
func exponentials(_ scores: inout [Float], count: Int) -> Float {
    let largest = scores[..<count].max() ?? 0
    var total: Float = 0
    for j in 0..<count {
        scores[j] = exp(scores[j] - largest)
        total += scores[j]
    }
    return total
}
