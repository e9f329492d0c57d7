import Foundation
import TRMCore

/// A model folder, checked before a number of it is used, as Python's `trm_mlx.checkpoint` does.
public struct ModelFolder: Sendable {
    public let shape: ModelShape
    /// Numbers that the model would hold without grids.
    public let parameters: Int
    /// One for each content: a hash of the hashes of `config.json`, `tokenizer.model` and the tensors.
    public let revision: String
    /// Size of `model.safetensors`.
    public let weightsBytes: Int
    /// Every tensor by name, row by row, matrices of a grid as the numbers that they stand for.
    let tensors: [String: [Float]]

    private static let (config, tokenizer, weights) = ("config.json", "tokenizer.model", "model.safetensors")
    private static let (configBytes, tokenizerBytes) = (1 << 20, 1 << 24)

    /// - Throws: `ModelFolderError`, or what the system says of a file that cannot be read.
    public init(contentsOf folder: URL) throws {
        let document = try Self.read(Self.config, of: folder, limit: Self.configBytes)
        let pieces = try Self.read(Self.tokenizer, of: folder, limit: Self.tokenizerBytes)
        let (shape, grids) = try Self.parse(document)
        let file = folder.appendingPathComponent(Self.weights)
        var numbers = shape.storedParameters
        var parts: [(name: String, grid: Grid, rows: Int, columns: Int)] = []
        for (name, grid) in grids {
            guard let (rows, columns) = shape.matrix(name) else {
                throw ModelFolderError.config("grids names \(JSON.text(name)), which is no matrix of this model")
            }
            let shapes = try grid.shapes(rows: rows, columns: columns)
            numbers += Int128(shapes.packed[0] * shapes.packed[1] + shapes.second[0] * shapes.second[1])
            numbers -= Int128(rows * columns)
            parts.append((name, grid, rows, columns))
        }
        let stored = try SafeTensors(file, numbers: numbers)
        for (name, digest) in [("config", hexDigest(document)), ("tokenizer", hexDigest(pieces))]
        where stored.metadata[name] != digest {
            throw ModelFolderError.foreign(file: name == "config" ? Self.config : Self.tokenizer)
        }
        let blocks = shape.prelude + shape.core + shape.coda
        guard blocks <= stored.entries.count else {
            throw ModelFolderError.weights("it must hold \(blocks) blocks, got \(stored.entries.count) tensors")
        }
        var expected = shape.tensors()
        for part in parts {
            let shapes = try part.grid.shapes(rows: part.rows, columns: part.columns)
            (expected[part.name], expected[part.grid.second(part.name)]) = (shapes.packed, shapes.second)
        }
        try Self.compare(stored, with: expected)
        tensors = try Self.spread(stored, names: expected.keys, parts: parts)
        (self.shape, parameters) = (shape, Int(shape.storedParameters))
        let owners = ["config", "tokenizer", "sha256"].map { stored.metadata[$0] ?? "" }
        revision = hexDigest([UInt8](owners.joined().utf8))
        weightsBytes = try Self.size(of: file)
    }

    /// Hash of the bytes of `config.json` and, after them, of `model.safetensors`.
    public static func fingerprint(of folder: URL) throws -> String {
        var hash = SHA256Hash()
        for name in [config, weights] {
            let handle = try FileHandle(forReadingFrom: folder.appendingPathComponent(name))
            defer { try? handle.close() }
            while let block = try handle.read(upToCount: 1 << 20), !block.isEmpty { hash.update([UInt8](block)) }
        }
        return hash.hexadecimal()
    }

    /// Bytes of a file that is there.
    static func size(of file: URL) throws -> Int {
        let path = file.resolvingSymlinksInPath().path
        guard let facts = try? FileManager.default.attributesOfItem(atPath: path),
            facts[.type] as? FileAttributeType == .typeRegular, let size = facts[.size] as? Int
        else { throw ModelFolderError.missing(file: file.lastPathComponent) }
        return size
    }

    private static func read(_ name: String, of folder: URL, limit: Int) throws -> [UInt8] {
        let file = folder.appendingPathComponent(name)
        guard try size(of: file) <= limit else { throw ModelFolderError.tooLarge(file: name, limit: limit) }
        return [UInt8](try Data(contentsOf: file))
    }

    private static func parse(_ document: [UInt8]) throws -> (ModelShape, [String: Grid]) {
        let record: JSON
        do { record = try JSON(document) } catch let error as JSON.Malformed {
            throw ModelFolderError.config("it must be JSON, and is not at byte \(error.offset)")
        }
        guard case .table(let table) = record, table["format"] == .text("trm_mlx.model") else {
            throw ModelFolderError.config("it must have \"format\": \"trm_mlx.model\"; it is not a model of trm_mlx")
        }
        guard table["version"] == .integer(1) else {
            let found = table["version"] ?? .null
            throw ModelFolderError.config("it has version \(found), and this app reads 1; get a newer one")
        }
        if let name = table.keys.filter({ !["format", "version", "model", "grids"].contains($0) }).min() {
            let known = "known are format, version, model, grids"
            throw ModelFolderError.config("unknown key \(JSON.text(name)); \(known)")
        }
        guard case .table(let model) = table["model"] ?? .table([:]) else {
            throw ModelFolderError.config("model must be a table of settings")
        }
        guard case .table(let grids) = table["grids"] ?? .table([:]) else {
            throw ModelFolderError.config("grids must be a table of matrices and their grids")
        }
        var found: [String: Grid] = [:]
        for (name, value) in grids {
            guard case .table(let grid) = value else {
                throw ModelFolderError.config("grids.\(JSON.text(name)) must be a table of settings")
            }
            found[name] = try Grid(grid, prefix: "grids.\(name.prefix(60)).")
        }
        return (try ModelShape(model), found)
    }

    private static func compare(_ stored: SafeTensors, with expected: [String: [Int]]) throws {
        for name in Set(stored.entries.keys).union(expected.keys).sorted() {
            guard let entry = stored.entries[name] else {
                throw ModelFolderError.weights("tensor \(name) is missing")
            }
            guard let shape = expected[name] else {
                throw ModelFolderError.weights("tensor \(JSON.text(name)) is unknown to a model of this config.json")
            }
            guard entry.shape == shape else {
                throw ModelFolderError.weights("\(name) must be of shape \(shape), got \(entry.shape)")
            }
        }
    }

    private static func spread(
        _ stored: SafeTensors, names: some Sequence<String>,
        parts: [(name: String, grid: Grid, rows: Int, columns: Int)]
    ) throws -> [String: [Float]] {
        var (found, rounded) = ([String: [Float]](), Set<String>())
        for (name, grid, rows, columns) in parts {
            let second = grid.second(name)
            guard let packed = stored.words(name) else {
                throw ModelFolderError.weights("\(name) must be of dtype U32, as config.json gives it a grid")
            }
            guard stored.entries[second]?.kind == .f16, let values = try stored.floats(second) else {
                throw ModelFolderError.weights("\(second) must be of dtype F16")
            }
            try grid.check(values, name: second)
            found[name] = grid.spread(packed: packed, second: values, rows: rows, columns: columns)
            rounded.formUnion([name, second])
        }
        for name in names where !rounded.contains(name) {
            guard let values = try stored.floats(name) else {
                throw ModelFolderError.weights("\(name) must be of floating point numbers, got U32")
            }
            found[name] = values
        }
        return found
    }
}

/// SHA-256 in 64 digits of base 16.
func hexDigest(_ bytes: [UInt8]) -> String { SHA256Hash.hexadecimal(of: bytes) }
