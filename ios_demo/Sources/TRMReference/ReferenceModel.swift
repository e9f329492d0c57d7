import Foundation
import TRMCore

/// docs/model.md in plain Swift: one token at a time, in float32, on one core of any machine.
///
/// x, e and h are that page's; every vector of a token is one array.
public final class ReferenceModel: StepModel {
    public let vocabulary: Int
    public let context: Int
    public let depths: [Int]
    public private(set) var position = 0

    private let shape: ModelShape
    private let embedding: Matrix
    private let prelude, core, coda: [Block]
    private let finalNorm, positions: [Float]
    private let injection, recall: [Float]?
    private let rates: [Double]  // of RoPE's or the sinusoids' angles

    private var depth: Int
    private var slots: [Slot]  // of the prelude, then of the core in each pass, then of the coda
    private var x, e, inner, mixed, qkv, hidden, branch, scores: [Float]
    private var cosines, sines: [Float]
    private var corrections: [Float]

    /// - Throws: `ModelFolderError`, or what the system says of a file that cannot be read.
    public convenience init(contentsOf folder: URL) throws {
        self.init(try ModelFolder(contentsOf: folder))
    }

    public init(_ folder: ModelFolder) {
        let (shape, tensors) = (folder.shape, Tensors(folder))
        self.shape = shape
        (vocabulary, context, depths) = (shape.vocabulary, shape.context, Array(1...shape.depth))
        embedding = tensors.matrix("embedding.weight", rows: shape.vocabulary, columns: shape.width)
        prelude = tensors.blocks("prelude", count: shape.prelude, passes: nil)
        core = tensors.blocks("core", count: shape.core, passes: shape.depth)
        coda = tensors.blocks("coda", count: shape.coda, passes: nil)
        finalNorm = tensors.vector("final_norm.weight")
        positions = shape.position == .learned ? tensors.vector("positions") : []
        injection = shape.injection ? tensors.vector("injection") : nil
        recall = shape.injection ? tensors.vector("recall") : nil
        switch shape.position {
        case .rope: rates = Self.rates(shape.ropeBase, over: shape.headWidth)
        case .sinusoidal: rates = Self.rates(10_000, over: shape.width)
        case .alibi, .learned, .none: rates = []
        }
        func zeros(_ count: Int) -> [Float] { [Float](repeating: 0, count: count) }
        (x, e, inner, mixed) = (zeros(shape.width), zeros(shape.width), zeros(shape.width), zeros(shape.width))
        (branch, scores, corrections) = (zeros(shape.width), [], zeros(shape.passLora))
        qkv = zeros(shape.width + 2 * shape.kvHeads * shape.headWidth)
        hidden = zeros((shape.feedForward == .swiglu ? 4 : 3) * shape.width)
        (cosines, sines) = (zeros(rates.count), zeros(rates.count))
        depth = shape.depth
        slots = Array(repeating: Slot(), count: shape.prelude + shape.core * shape.depth + shape.coda)
    }

    private static func rates(_ base: Double, over width: Int) -> [Double] {
        (0..<width / 2).map { pow(base, -2 * Double($0) / Double(width)) }
    }

    public func reset(depth: Int) throws {
        guard depths.contains(depth) else { throw ReferenceModelError.depth(depth, most: shape.depth) }
        self.depth = depth
        position = 0
        for place in slots.indices { slots[place].removeAll() }
    }

    public func append(_ tokens: [Int32]) throws -> [Float] {
        guard !tokens.isEmpty else { throw ReferenceModelError.noTokens }
        guard tokens.count <= context - position else {
            throw ReferenceModelError.context(position: position, more: tokens.count, most: context)
        }
        if let token = tokens.first(where: { !(0..<vocabulary).contains(Int($0)) }) {
            throw ReferenceModelError.token(token, vocabulary: vocabulary)
        }
        for token in tokens { read(Int(token)) }
        normalise(x, finalNorm, into: &inner)
        var logits = [Float](repeating: 0, count: vocabulary)
        embedding.multiply(inner, into: &logits)
        return logits
    }

    /// Runs one token through all blocks; x is then what the logits are read from.
    private func read(_ token: Int) {
        normalise(embedding.row(token), nil, into: &x)
        for (m, rate) in rates.enumerated() {
            let angle = Double(position) * rate
            (cosines[m], sines[m]) = (Float(cos(angle)), Float(sin(angle)))
        }
        if shape.position == .learned {
            for m in x.indices { x[m] += positions[position * shape.width + m] }
        } else if shape.position == .sinusoidal {
            for m in rates.indices {
                x[m] += sines[m]
                x[rates.count + m] += cosines[m]
            }
        }
        var slot = 0
        through(prelude, pass: 0, slot: &slot)
        normalise(x, nil, into: &e)
        x = e
        for pass in 0..<depth {
            inject(injection)
            through(core, pass: pass, slot: &slot)
        }
        inject(recall)
        through(coda, pass: 0, slot: &slot)
        position += 1
    }

    /// x = rms(x) + gain * e
    private func inject(_ gain: [Float]?) {
        normalise(x, nil, into: &inner)
        swap(&x, &inner)
        guard let gain else { return }
        for m in x.indices { x[m] += gain[m] * e[m] }
    }

    private func through(_ blocks: [Block], pass: Int, slot: inout Int) {
        for block in blocks {
            normalise(x, block.attentionNorm, into: &inner)
            attend(block, pass: pass, slot: slot)
            add(block.attentionScale, pass: pass)
            normalise(x, block.feedForwardNorm, into: &inner)
            feedForward(block, pass: pass)
            add(block.feedForwardScale, pass: pass)
            slot += 1
        }
    }

    /// x = x + scale * branch, with the scale of the pass.
    private func add(_ scale: [Float], pass: Int) {
        let start = pass * shape.width
        for m in x.indices { x[m] += scale[start + m] * branch[m] }
    }

    /// branch = attention(inner)
    private func attend(_ block: Block, pass: Int, slot: Int) {
        let (H, N, K) = (shape.heads, shape.kvHeads, shape.headWidth)
        apply(block.qkv, pass: pass, inner, into: &qkv)
        for head in 0..<H + N {  // queries, then keys
            if let gain = head < H ? block.queryNorm : block.keyNorm { normalise(&qkv, at: head * K, gain) }
            if shape.position == .rope { turn(head * K) }
        }
        slots[slot].append(keys: qkv[H * K..<(H + N) * K], values: qkv[(H + N) * K..<(H + 2 * N) * K])
        let first = shape.window > 0 ? max(0, position - shape.window + 1) : 0
        let count = position - first + 1
        if scores.count < count { scores = [Float](repeating: 0, count: 2 * count) }
        for head in 0..<H {
            let shared = head / (H / N) * K
            let slope = shape.position == .alibi ? Float(pow(2, -8 * Double(head + 1) / Double(H))) : 0
            slots[slot].attend(
                Slot.Query(start: head * K, width: K, first: first, shared: shared, stride: N * K, slope: slope),
                qkv, scores: &scores, count: count, into: &mixed)
        }
        apply(block.out, pass: pass, mixed, into: &branch)
    }

    /// branch = feed-forward(inner)
    private func feedForward(_ block: Block, pass: Int) {
        apply(block.up, pass: pass, inner, into: &hidden)
        if shape.feedForward == .relu2 {
            for m in hidden.indices { hidden[m] = max(hidden[m], 0) * max(hidden[m], 0) }
        } else {
            let half = hidden.count / 2
            for m in 0..<half { hidden[m] = hidden[m] / (1 + exp(-hidden[m])) * hidden[half + m] }
        }
        apply(block.down, pass: pass, hidden, into: &branch)
    }

    /// y = x W^T, with the correction of the pass; of x only what W reads.
    private func apply(_ linear: Linear, pass: Int, _ x: [Float], into y: inout [Float]) {
        linear.weight.multiply(x, into: &y)
        guard !linear.loraA.isEmpty else { return }
        linear.loraA[pass].multiply(x, into: &corrections)
        linear.loraB[pass].multiply(corrections, addingTo: &y)
    }

    /// RoPE of the head that starts here.
    private func turn(_ start: Int) {
        let half = rates.count
        for m in start..<start + half {
            let (u, w, cosine, sine) = (qkv[m], qkv[m + half], cosines[m - start], sines[m - start])
            qkv[m] = u * cosine - w * sine
            qkv[m + half] = u * sine + w * cosine
        }
    }
}

/// Why the engine refused a call.
public enum ReferenceModelError: Error, Equatable {
    case depth(Int, most: Int)
    case noTokens
    case context(position: Int, more: Int, most: Int)
    case token(Int32, vocabulary: Int)
}

extension ReferenceModelError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .depth(let depth, let most):
            "The depth must be 1 to \(most), the most this model was made for, got \(depth)."
        case .noTokens: "There must be at least one token to read."
        case .context(let position, let more, let most):
            "The text must fit the context of \(most) tokens, got \(position) and \(more) more."
        case .token(let token, let vocabulary): "Token ids must be 0 to \(vocabulary - 1), got \(token)."
        }
    }
}
