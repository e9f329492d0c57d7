import Foundation
import TRMCore
import TRMReference

/// What is known of a model folder without reading its weights.
public struct FolderRecord: Codable, Equatable, Sendable {
    public let name, revision: String
    /// Of `config.json` and `model.safetensors`.
    public let fingerprint: String
    public let parameters, depth, context, vocabulary, weightsBytes: Int
}

/// A model folder in the app's own folder.
public struct StoredFolder: Equatable, Sendable {
    /// Its folder: the model, and the record.
    public let folder: URL
    public let record: FolderRecord

    public var model: URL { folder.appendingPathComponent("model", isDirectory: true) }
    public var tokenizer: URL { model.appendingPathComponent(FolderStore.tokenizer) }
}

/// The imported model folders. As with `ModelStore`, an import is all or nothing: a private copy is made, checked as
/// `ModelFolder` checks it, and moved into place in one step.
struct FolderStore: Sendable {
    static let config = "config.json"
    static let tokenizer = "tokenizer.model"
    static let unfinished = ".importing-"
    /// The files of a model folder, with the most bytes that each may have; others are not copied.
    static let files = [(config, 1 << 20), (tokenizer, 16 << 20), ("model.safetensors", 512 << 20)]

    private static let record = "record.json"
    private static let block = 1 << 20

    /// A folder that only this app writes to.
    let home: URL

    /// - Parameter progress: is given the share that is done, 0 to 1.
    func add(_ source: URL, progress: (Double) -> Void) throws -> StoredFolder {
        let manager = FileManager.default
        let sizes = try Self.files.map { name, most in try Self.size(of: name, in: source, most: most) }
        let made = home.appendingPathComponent(Self.unfinished + UUID().uuidString, isDirectory: true)
        let model = made.appendingPathComponent("model", isDirectory: true)
        defer { try? manager.removeItem(at: made) }
        try writing { try manager.createDirectory(at: model, withIntermediateDirectories: true) }
        var done = 0
        for ((name, _), size) in zip(Self.files, sizes) {
            try copy(name, from: source, to: model, size: size) { more in
                done += more
                progress(Double(done) / Double(max(1, sizes.reduce(0, +))))
            }
        }
        let record = try Self.check(model, name: source.lastPathComponent)
        try Task.checkCancellation()
        let place = home.appendingPathComponent(record.revision, isDirectory: true)
        try writing {
            try JSONEncoder().encode(record).write(to: made.appendingPathComponent(Self.record))
            try? manager.removeItem(at: place)  // the same model, perhaps damaged since
            try manager.moveItem(at: made, to: place)
        }
        return StoredFolder(folder: place, record: record)
    }

    func models() -> [StoredFolder] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: home.path)) ?? []
        return names.compactMap { name in
            let folder = home.appendingPathComponent(name, isDirectory: true)
            guard let bytes = try? Data(contentsOf: folder.appendingPathComponent(Self.record)),
                let record = try? JSONDecoder().decode(FolderRecord.self, from: bytes), record.revision == name
            else { return nil }
            return StoredFolder(folder: folder, record: record)
        }
    }

    func remove(_ model: StoredFolder) throws {
        try writing { try FileManager.default.removeItem(at: model.folder) }
    }

    /// Removes what an import left that ended with the app.
    func removeUnfinished() {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: home.path)) ?? []
        for name in names where name.hasPrefix(Self.unfinished) {
            try? FileManager.default.removeItem(at: home.appendingPathComponent(name))
        }
    }

    /// Reads the model once as the engine will, which compares every hash.
    private static func check(_ folder: URL, name: String) throws -> FolderRecord {
        let model = try ModelFolder(contentsOf: folder)
        let tokenizer = try Tokenizer(contentsOf: folder.appendingPathComponent(tokenizer))
        guard tokenizer.vocabulary == model.shape.vocabulary else {
            throw GenerationError.vocabularies(
                expected: tokenizer.vocabulary, found: model.shape.vocabulary, place: "model")
        }
        return FolderRecord(
            name: name, revision: model.revision, fingerprint: try ModelFolder.fingerprint(of: folder),
            parameters: model.parameters, depth: model.shape.depth, context: model.shape.context,
            vocabulary: model.shape.vocabulary, weightsBytes: model.weightsBytes)
    }

    private static func size(of name: String, in folder: URL, most: Int) throws -> Int {
        let path = folder.appendingPathComponent(name).path
        guard let facts = try? FileManager.default.attributesOfItem(atPath: path) else {
            throw ImportError.missing(name)
        }
        switch facts[.type] as? FileAttributeType {
        case .typeRegular?: break
        case .typeSymbolicLink?: throw ImportError.link(name)
        default: throw ImportError.special(name)
        }
        let size = (facts[.size] as? NSNumber)?.intValue ?? 0
        guard size <= most else { throw ImportError.tooLarge(bytes: size, most: most) }
        return size
    }

    private func copy(
        _ name: String, from source: URL, to folder: URL, size: Int, _ copied: (Int) -> Void
    ) throws {
        let input: FileHandle
        do { input = try FileHandle(forReadingFrom: source.appendingPathComponent(name)) } catch {
            throw ImportError.unreadable(name, reason: error.localizedDescription)
        }
        defer { try? input.close() }
        let target = folder.appendingPathComponent(name)
        let output = try writing {
            try Data().write(to: target)
            return try FileHandle(forWritingTo: target)
        }
        defer { try? output.close() }
        var total = 0
        while let part = try input.read(upToCount: Self.block), !part.isEmpty {
            try Task.checkCancellation()
            total += part.count
            guard total <= size else { throw ImportError.wrongSize(name, bytes: total, wanted: size) }
            try writing { try output.write(contentsOf: part) }
            copied(part.count)
        }
    }

    private func writing<Result>(_ body: () throws -> Result) throws -> Result {
        do { return try body() } catch { throw ImportError.unwritable(reason: error.localizedDescription) }
    }
}
