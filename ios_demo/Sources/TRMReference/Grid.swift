import TRMCore

/// How a matrix was rounded to few bits; the last section of docs/model.md.
struct Grid: Equatable {
    enum Method: String, CaseIterable { case affine, lut }

    let method: Method
    let bits: Int
    let group: Int

    init(_ table: [String: JSON], prefix: String) throws {
        var keys = Keys(table, prefix: prefix)
        method = try keys.choice("method", else: .affine)
        bits = try keys.integer("bits", 4...8, else: 8)
        group = try keys.integer("group", 0...1 << 24, else: 0)
        try keys.finish()
        guard bits % 2 == 0 else { throw ModelFolderError.config("\(prefix)bits must be 4, 6 or 8, got \(bits)") }
    }

    /// Scales in a row, or tables, of a matrix of this shape.
    func groups(rows: Int, columns: Int) throws -> Int {
        guard columns % 32 == 0 else {
            throw ModelFolderError.config("a rounded matrix must have a multiple of 32 inputs, got \(columns)")
        }
        let (whole, what) = method == .affine ? (columns, "inputs") : (rows, "rows")
        guard group == 0 || whole % group == 0 else {
            throw ModelFolderError.config("group must divide the \(whole) \(what) of a matrix, got \(group)")
        }
        return group == 0 ? 1 : whole / group
    }

    /// The name of the second tensor of the matrix of this tensor.
    func second(_ name: String) -> String {
        name.dropLast("weight".count) + (method == .affine ? "scales" : "table")
    }

    /// Shapes of both tensors: the packed numbers, and the scales or tables.
    func shapes(rows: Int, columns: Int) throws -> (packed: [Int], second: [Int]) {
        let count = try groups(rows: rows, columns: columns)
        return ([rows, columns / 32 * bits], method == .affine ? [rows, count] : [count, 1 << bits])
    }

    /// The matrix that two tensors stand for.
    func spread(packed: [UInt32], second: [Float], rows: Int, columns: Int) -> [Float] {
        let words = columns / 32 * bits
        let groups = method == .affine ? second.count / rows : second.count >> bits
        let (mask, middle) = (UInt64(1) << UInt64(bits) - 1, Float(1 << (bits - 1)))
        var matrix = [Float](repeating: 0, count: rows * columns)
        for row in 0..<rows {
            var (held, count, word) = (UInt64(0), 0, row * words)  // bits of the row that are read and not used
            for column in 0..<columns {
                if count < bits {
                    held |= UInt64(packed[word]) << UInt64(count)
                    (count, word) = (count + 32, word + 1)
                }
                let number = Int(held & mask)
                (held, count) = (held >> UInt64(bits), count - bits)
                matrix[row * columns + column] =
                    method == .affine
                    ? second[row * groups + column * groups / columns] * (Float(number) - middle)
                    : second[(row * groups / rows) << bits + number]
            }
        }
        return matrix
    }

    /// Refuses scales of which a product with a whole number might be no float16 number.
    func check(_ second: [Float], name: String) throws {
        guard method == .affine else { return }
        let significant = [8: 4, 6: 5, 4: 7][bits, default: 4]
        let largest = Float(1 << (17 - bits)) * (1 - 1 / Float(1 << significant))
        for scale in second {
            guard scale > 0, scale <= largest else {
                throw ModelFolderError.weights("\(name) must be above 0 and at most \(largest), got \(scale)")
            }
            let step = Float(sign: .plus, exponent: max(Int(scale.exponent) + 1 - significant, -24), significand: 1)
            guard (scale / step).rounded() * step == scale else {
                throw ModelFolderError.weights("\(name) must be of at most \(significant) significant bits")
            }
        }
    }
}
