import TRMCore

/// The shape of a model: the table `model` of `config.json`.
public struct ModelShape: Equatable, Sendable {
    public enum Position: String, CaseIterable, Sendable { case rope, alibi, learned, sinusoidal, none }
    public enum FeedForward: String, CaseIterable, Sendable { case relu2, swiglu }

    public let vocabulary, width, heads, kvHeads: Int
    public let prelude, core, coda, depth: Int
    public let context, window: Int
    public let position: Position
    public let ropeBase: Double
    public let feedForward: FeedForward
    public let qkNorm, injection, passScale: Bool
    public let passLora: Int
    /// Whether the folder has a halting head, which says when to leave and changes no scores; it is not used here.
    public let halting: Bool

    public var headWidth: Int { width / heads }

    /// - Throws: `ModelFolderError.config`: a key is unknown, or a value is of another type or out of its range.
    init(_ table: [String: JSON]) throws {
        var keys = Keys(table)
        vocabulary = try keys.integer("vocabulary", 1...1 << 16, else: 8192)
        width = try keys.integer("width", 1...Self.largest, else: 256)
        heads = try keys.integer("heads", 1...Self.largest, else: 4)
        kvHeads = try keys.integer("kv_heads", 1...Self.largest, else: 2)
        prelude = try keys.integer("prelude", 0...Self.largest, else: 2)
        core = try keys.integer("core", 1...Self.largest, else: 2)
        coda = try keys.integer("coda", 0...Self.largest, else: 2)
        depth = try keys.integer("depth", 1...64, else: 2)
        context = try keys.integer("context", 1...Self.largest, else: 1024)
        window = try keys.integer("window", 0...Self.largest, else: 0)
        position = try keys.choice("position", else: .rope)
        ropeBase = try keys.number("rope_base", else: 10_000)
        feedForward = try keys.choice("feed_forward", else: .relu2)
        qkNorm = try keys.bool("qk_norm", else: true)
        injection = try keys.bool("injection", else: true)
        passScale = try keys.bool("pass_scale", else: true)
        passLora = try keys.integer("pass_lora", 0...Self.largest, else: 0)
        let dropout = try keys.number("dropout", else: 0)  // of training alone
        halting = try keys.bool("halting", else: false)
        try keys.finish()
        guard width % heads == 0, heads % kvHeads == 0 else {
            throw ModelFolderError.config(
                "width must be a multiple of heads, and heads of kv_heads, got \(width), \(heads) and \(kvHeads)")
        }
        let paired = [.rope: headWidth, .sinusoidal: width][position, default: 0]
        guard paired % 2 == 0 else {
            throw ModelFolderError.config(
                "width (for rope, width / heads) must be even, got \(width) and \(heads) heads")
        }
        guard dropout >= 0, dropout < 1 else {
            throw ModelFolderError.config("dropout must be at least 0 and below 1, got \(dropout)")
        }
        guard ropeBase > 1 else { throw ModelFolderError.config("rope_base must be above 1, got \(ropeBase)") }
    }

    private static let largest = 1 << 20

    /// Rows and columns of each matrix of one block, by its name.
    var linears: [String: (rows: Int, columns: Int)] {
        let gated = feedForward == .swiglu
        return [
            "attention.qkv": (width + 2 * kvHeads * headWidth, width),
            "attention.out": (width, width),
            "feed_forward.up": ((gated ? 4 : 3) * width, width),
            "feed_forward.down": (width, (gated ? 2 : 3) * width),
        ]
    }

    /// Rows and columns of the matrix of this tensor; nil if there is none.
    ///
    /// Not a table of all: a hostile `config.json` has millions.
    func matrix(_ name: String) -> (rows: Int, columns: Int)? {
        if name == "embedding.weight" { return (vocabulary, width) }
        let parts = name.split(separator: ".", omittingEmptySubsequences: false)
        let counts = ["prelude": prelude, "core": core, "coda": coda]
        guard parts.count == 5, parts[4] == "weight", let count = counts[String(parts[0])],
            let place = Int(parts[1]), String(place) == parts[1], (0..<count).contains(place)
        else { return nil }
        return linears["\(parts[2]).\(parts[3])"]
    }

    /// Numbers that a model without grids holds; what a hostile `config.json` asks for does not fit 64 bits.
    var storedParameters: Int128 {
        let shapes = linears.values.map { (rows: Int128($0.rows), columns: Int128($0.columns)) }
        let matrices = shapes.reduce(0) { $0 + $1.rows * $1.columns }
        let lora = Int128(passLora) * shapes.reduce(0) { $0 + $1.rows + $1.columns }
        let block = matrices + Int128(2 * width + (qkNorm ? 2 * headWidth : 0))
        let passes = Int128(core * depth) * ((passScale ? 2 * Int128(width) : 0) + lora)
        return Int128(vocabulary + 1) * Int128(width) + Int128(prelude + core + coda) * block + passes
            + (position == .learned ? Int128(context) * Int128(width) : 0) + (injection ? 2 * Int128(width) : 0)
            + (halting ? Int128(width) + 1 : 0)
    }

    /// The shape of every tensor of a model without grids, by name.
    func tensors() -> [String: [Int]] {
        var found = ["embedding.weight": [vocabulary, width], "final_norm.weight": [width]]
        if injection { (found["injection"], found["recall"]) = ([width], [width]) }
        if halting { (found["halting.weight"], found["halting.bias"]) = ([width], [1]) }
        if position == .learned { found["positions"] = [context, width] }
        for (part, count) in [("prelude", prelude), ("core", core), ("coda", coda)] {
            for block in (0..<count).map({ "\(part).\($0)" }) {
                for (name, shape) in linears {
                    found["\(block).\(name).weight"] = [shape.rows, shape.columns]
                    if part == "core", passLora > 0 {
                        found["\(block).\(name).lora_a"] = [depth, passLora, shape.columns]
                        found["\(block).\(name).lora_b"] = [depth, shape.rows, passLora]
                    }
                }
                for branch in ["attention", "feed_forward"] {
                    found["\(block).\(branch)_norm.weight"] = [width]
                    if part == "core", passScale { found["\(block).\(branch)_scale"] = [depth, width] }
                }
                if qkNorm {
                    found["\(block).attention.query_norm.weight"] = [headWidth]
                    found["\(block).attention.key_norm.weight"] = [headWidth]
                }
            }
        }
        return found
    }
}

/// The values of one table of `config.json`, each taken once.
struct Keys {
    private var table: [String: JSON]
    private let prefix: String
    private var known: [String] = []

    init(_ table: [String: JSON], prefix: String = "") {
        (self.table, self.prefix) = (table, prefix)
    }

    private mutating func take(_ name: String) -> JSON? {
        known.append(name)
        return table.removeValue(forKey: name)
    }

    private func wrong(_ name: String, _ wanted: String, _ found: JSON) -> ModelFolderError {
        .config("\(prefix)\(name) must be \(wanted), got \(found)")
    }

    mutating func integer(_ name: String, _ range: ClosedRange<Int>, else usual: Int) throws -> Int {
        guard let found = take(name) else { return usual }
        guard case .integer(let value) = found, range.contains(value) else {
            throw wrong(name, "a whole number from \(range.lowerBound) to \(range.upperBound)", found)
        }
        return value
    }

    mutating func number(_ name: String, else usual: Double) throws -> Double {
        switch take(name) {
        case nil: return usual
        case .integer(let value): return Double(value)
        case .number(let value): return value
        case .some(let found): throw wrong(name, "a number", found)
        }
    }

    mutating func bool(_ name: String, else usual: Bool) throws -> Bool {
        guard let found = take(name) else { return usual }
        guard case .bool(let value) = found else { throw wrong(name, "true or false", found) }
        return value
    }

    mutating func choice<Choice: RawRepresentable & CaseIterable>(_ name: String, else usual: Choice) throws -> Choice
    where Choice.RawValue == String {
        guard let found = take(name) else { return usual }
        guard case .text(let word) = found, let choice = Choice(rawValue: word) else {
            let words = Choice.allCases.map { "\"\($0.rawValue)\"" }.joined(separator: ", ")
            throw wrong(name, "one of \(words)", found)
        }
        return choice
    }

    /// Refuses what was not taken.
    func finish() throws {
        if let name = table.keys.min() {
            let listed = known.joined(separator: ", ")
            throw ModelFolderError.config("unknown key \(JSON.text(prefix + name)); known are \(listed)")
        }
    }
}
