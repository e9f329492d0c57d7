/// What an export folder says of itself: `manifest.json`, whose keys `convert/manifest.py` defines.
public struct Manifest: Equatable, Sendable {
    /// The two functions of one depth.
    public struct FunctionPair: Equatable, Sendable {
        /// Passes through the core.
        public let depth: Int
        /// Function that reads one token.
        public let decode: String
        /// Function that reads a chunk.
        public let prefill: String
        /// Slots of the cache that this depth uses, the first ones.
        public let slots: Int
    }

    /// Ids of the control tokens.
    public struct Tokens: Equatable, Sendable {
        public let unknown, bos, eos, pad, user, assistant, end: Int
    }

    /// What the app's controls start from.
    public struct Sampling: Equatable, Sendable {
        public let temperature: Double
        public let topK: Int
        public let topP, minP, repetitionPenalty: Double
    }

    /// One token read, and the likeliest next ones by the reference, likeliest first.
    public struct SelfTestStep: Equatable, Sendable {
        public let id: Int
        public let top: [Int]
    }

    /// What a loaded package is asked: its likeliest token must be among the reference's at each step.
    public struct SelfTest: Equatable, Sendable {
        public let depth: Int
        public let steps: [SelfTestStep]
    }

    /// One file of the folder.
    public struct FileRecord: Equatable, Sendable {
        /// Relative to the folder, with `/`.
        public let path: String
        public let bytes: Int
        public let sha256: String
    }

    /// What coremltools rounded at export, which MLX did not.
    public enum Compression: String, Sendable, CaseIterable {
        case none, int8, int4, lut8, lut6, lut4
    }

    public enum Precision: String, Sendable, CaseIterable {
        case float16, float32
    }

    /// Who owns the cache: a state of the package, or the app.
    public enum CacheOwner: String, Sendable, CaseIterable {
        case model, host
    }

    public static let fileName = "manifest.json"
    public static let tokenizerName = "tokenizer.model"
    /// A longer file is no manifest.
    public static let mostBytes = 1 << 20
    static let format = "trm.export"
    static let version = 1

    public let name: String
    /// File name of the package.
    public let package: String
    /// Hash of the config, tokenizer and tensors that it was made from.
    public let revision: String
    public let storedParameters: Int
    /// At the deepest exported depth.
    public let effectiveParameters: Int
    /// How the matrices are stored, for people.
    public let weights: String
    public let compress: Compression
    public let precision: Precision
    public let state: CacheOwner
    public let vocabulary: Int
    public let context: Int
    /// Positions a token looks back on; 0: all.
    public let window: Int
    /// Tokens that prefill reads.
    public let chunk: Int
    public let slots: Int
    public let kvHeads: Int
    public let headWidth: Int
    /// By depth, ascending; the last one is the default.
    public let functions: [FunctionPair]
    public let tokens: Tokens
    public let sampling: Sampling
    public let selfTest: SelfTest
    /// Every other file of the folder, by path.
    public let files: [FileRecord]

    public var depths: [Int] { functions.map(\.depth) }

    /// (2 S, N, C, K): slots, key-value heads, context, head width.
    public var cacheShape: [Int] { [2 * slots, kvHeads, context, headWidth] }

    /// Bytes of the files that it lists.
    public var totalBytes: Int { files.reduce(0) { $0 + $1.bytes } }

    /// The functions of a depth, nil if it was not exported.
    public func pair(depth: Int) -> FunctionPair? { functions.first { $0.depth == depth } }

    /// Reads the content of `manifest.json`, as strictly as Python does.
    public init(_ bytes: [UInt8]) throws(ManifestError) {
        guard bytes.count <= Self.mostBytes else { throw .tooLarge(bytes: bytes.count, most: Self.mostBytes) }
        let parsed: JSON
        do { parsed = try JSON(bytes) } catch let error as JSON.Malformed {
            throw .notJSON(offset: error.offset)
        } catch { throw .notJSON(offset: 0) }
        guard case .table(let record) = parsed, record["format"] == .text(Self.format) else { throw .notAnExport }
        guard record["version"] == .integer(Self.version) else { throw .otherVersion(read: Self.version) }
        var table = ManifestTable(record, path: "")
        table.pass("format")
        table.pass("version")
        name = try table.text("name")
        package = try table.text("package")
        revision = try table.text("revision")
        storedParameters = try table.integer("stored_parameters")
        effectiveParameters = try table.integer("effective_parameters")
        weights = try table.text("weights")
        compress = try table.choice("compress")
        precision = try table.choice("precision")
        state = try table.choice("state")
        vocabulary = try table.integer("vocabulary")
        context = try table.integer("context")
        window = try table.integer("window")
        chunk = try table.integer("chunk")
        slots = try table.integer("slots")
        kvHeads = try table.integer("kv_heads")
        headWidth = try table.integer("head_width")
        functions = try table.tables("functions", FunctionPair.init)
        tokens = try table.table("tokens", Tokens.init)
        sampling = try table.table("sampling", Sampling.init)
        selfTest = try table.table("self_test", SelfTest.init)
        files = try table.tables("files", FileRecord.init)
        try table.end()
        try check()
    }
}

extension Manifest.FunctionPair {
    init(_ table: inout ManifestTable) throws(ManifestError) {
        depth = try table.integer("depth")
        decode = try table.text("decode")
        prefill = try table.text("prefill")
        slots = try table.integer("slots")
    }
}

extension Manifest.Tokens {
    init(_ table: inout ManifestTable) throws(ManifestError) {
        unknown = try table.integer("unknown")
        bos = try table.integer("bos")
        eos = try table.integer("eos")
        pad = try table.integer("pad")
        user = try table.integer("user")
        assistant = try table.integer("assistant")
        end = try table.integer("end")
    }

    var all: [Int] { [unknown, bos, eos, pad, user, assistant, end] }
}

extension Manifest.Sampling {
    init(_ table: inout ManifestTable) throws(ManifestError) {
        temperature = try table.number("temperature")
        topK = try table.integer("top_k")
        topP = try table.number("top_p")
        minP = try table.number("min_p")
        repetitionPenalty = try table.number("repetition_penalty")
    }
}

extension Manifest.SelfTest {
    init(_ table: inout ManifestTable) throws(ManifestError) {
        depth = try table.integer("depth")
        steps = try table.tables("steps") { (step: inout ManifestTable) throws(ManifestError) in
            Manifest.SelfTestStep(id: try step.integer("id"), top: try step.integers("top"))
        }
    }
}

extension Manifest.FileRecord {
    init(_ table: inout ManifestTable) throws(ManifestError) {
        path = try table.text("path")
        bytes = try table.integer("bytes")
        sha256 = try table.text("sha256")
    }
}
