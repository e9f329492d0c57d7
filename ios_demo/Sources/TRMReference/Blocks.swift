/// The weights of one block, its residual scales multiplied out for each pass.
struct Block {
    let attentionNorm, feedForwardNorm: [Float]
    let queryNorm, keyNorm: [Float]?
    let qkv, out, up, down: Linear
    let attentionScale, feedForwardScale: [Float]  // (passes, width)
}

/// A matrix, and in the core of some models a low-rank correction of it for each pass.
struct Linear {
    let weight: Matrix
    let loraA, loraB: [Matrix]
}

/// The tensors of a folder, which has checked that all are there and of their shapes.
struct Tensors {
    let shape: ModelShape
    let tensors: [String: [Float]]

    init(_ folder: ModelFolder) {
        (shape, tensors) = (folder.shape, folder.tensors)
    }

    func vector(_ name: String) -> [Float] { tensors[name] ?? [] }

    func matrix(_ name: String, rows: Int, columns: Int) -> Matrix {
        Matrix(rows: rows, columns: columns, values: vector(name))
    }

    /// The blocks of the prelude or the coda (passes nil), or of the core.
    func blocks(_ part: String, count: Int, passes: Int?) -> [Block] {
        let constant = 1 / (Float(passes ?? 1) * Float(count).squareRoot())
        return (0..<count).map { place in
            let block = "\(part).\(place)"
            func norm(_ name: String) -> [Float] { vector("\(block).\(name).weight") }
            func scale(_ name: String) -> [Float] {
                let learned = passes != nil && shape.passScale
                let ones = [Float](repeating: 1, count: (passes ?? 1) * shape.width)
                return (learned ? vector("\(block).\(name)") : ones).map { constant * $0 }
            }
            return Block(
                attentionNorm: norm("attention_norm"), feedForwardNorm: norm("feed_forward_norm"),
                queryNorm: shape.qkNorm ? norm("attention.query_norm") : nil,
                keyNorm: shape.qkNorm ? norm("attention.key_norm") : nil,
                qkv: linear(block, "attention.qkv", passes), out: linear(block, "attention.out", passes),
                up: linear(block, "feed_forward.up", passes), down: linear(block, "feed_forward.down", passes),
                attentionScale: scale("attention_scale"), feedForwardScale: scale("feed_forward_scale"))
        }
    }

    private func linear(_ block: String, _ name: String, _ passes: Int?) -> Linear {
        let (rows, columns) = shape.linears[name] ?? (0, 0)
        func parts(_ end: String, _ rows: Int, _ columns: Int) -> [Matrix] {
            guard let passes, shape.passLora > 0 else { return [] }
            let values = vector("\(block).\(name).\(end)")
            return (0..<passes).map { pass in
                let range = pass * rows * columns..<(pass + 1) * rows * columns
                return Matrix(rows: rows, columns: columns, values: Array(values[range]))
            }
        }
        return Linear(
            weight: matrix("\(block).\(name).weight", rows: rows, columns: columns),
            loraA: parts("lora_a", shape.passLora, columns), loraB: parts("lora_b", rows, shape.passLora))
    }
}

/// Keys (after norm and RoPE) and values of every position, for one block in one pass.
struct Slot {
    private var keys: [Float] = []
    private var values: [Float] = []

    mutating func append(keys more: ArraySlice<Float>, values moreValues: ArraySlice<Float>) {
        keys += more
        values += moreValues
    }

    mutating func removeAll() {
        keys.removeAll(keepingCapacity: true)
        values.removeAll(keepingCapacity: true)
    }

    /// Where one head's query lies, and what it may look at.
    struct Query {
        let start, width: Int  // in the vector of queries, and in the mean
        let first: Int  // position
        let shared, stride: Int  // where its key-value head lies in the numbers of a position, and how many those are
        let slope: Float  // of ALiBi
    }

    /// The mean of the values of `count` positions, weighed by how alike their keys are to the query.
    func attend(_ query: Query, _ queries: [Float], scores: inout [Float], count: Int, into mean: inout [Float]) {
        let (K, factor) = (query.width, 1 / Float(query.width).squareRoot())
        queries.withUnsafeBufferPointer { queries in
            keys.withUnsafeBufferPointer { keys in
                for j in 0..<count {
                    let key = (query.first + j) * query.stride + query.shared
                    let product = dot(
                        UnsafeBufferPointer(rebasing: queries[query.start..<query.start + K]),
                        UnsafeBufferPointer(rebasing: keys[key..<key + K]))
                    scores[j] = product * factor - query.slope * Float(count - 1 - j)
                }
            }
        }
        let total = exponentials(&scores, count: count)
        for m in query.start..<query.start + K { mean[m] = 0 }
        for j in 0..<count {
            let (share, value) = (scores[j] / total, (query.first + j) * query.stride + query.shared)
            for m in 0..<K { mean[query.start + m] += share * values[value + m] }
        }
    }
}
