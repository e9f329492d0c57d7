import Foundation

/// A model in the app's own folder, every file of which was compared with its manifest when it came.
public struct InstalledModel: Equatable, Sendable {
    /// SHA-256 of the manifest, which holds those of all other files.
    public let id: String
    /// Its folder: the export, and what this device makes of it.
    public let folder: URL
    public let manifest: Manifest

    public var export: URL { folder.appendingPathComponent("export") }
    public var package: URL { export.appendingPathComponent(manifest.package) }
    public var tokenizer: URL { export.appendingPathComponent(Manifest.tokenizerName) }
}

/// The imported models. An import is all or nothing: it copies to a private folder, compares the copy with the
/// manifest, and moves it into place in one step.
public struct ModelStore: Sendable {
    public static let mostBytes = 512 << 20
    public static let mostFiles = 1000
    /// What is kept free beyond the model and what Core ML compiles from it.
    static let spare = 16 << 20
    static let unfinished = ".importing-"

    public let home: URL
    let freeBytes: @Sendable (URL) -> Int?

    /// - Parameter home: a folder that only this app writes to; it is made at the first import.
    public init(home: URL) { self.init(home: home, freeBytes: Self.freeBytes) }

    init(home: URL, freeBytes: @escaping @Sendable (URL) -> Int?) {
        (self.home, self.freeBytes) = (home, freeBytes)
    }

    /// Copies an export folder into the store. Stops with `CancellationError` soon after its task is cancelled.
    ///
    /// - Parameters:
    ///   - folder: where the user's folder is; nothing in it is trusted.
    ///   - progress: is given the share that is done, 0 to 1.
    public func add(_ folder: URL, progress: (Double) -> Void = { _ in }) throws -> InstalledModel {
        #if canImport(Darwin)
            let scoped = folder.startAccessingSecurityScopedResource()
            defer { if scoped { folder.stopAccessingSecurityScopedResource() } }
        #endif
        let source = folder.resolvingSymlinksInPath()
        guard (try? FileTree.kind(source, "")) == .folder else {
            throw ImportError.notAFolder(folder.lastPathComponent)
        }
        let bytes = try Self.manifestBytes(source)
        let manifest = try Manifest(bytes)
        try Self.checkListing(manifest)
        try Self.compare(try FileTree(source, most: Self.mostFiles), with: manifest)
        let id = ImportSHA256.hexadecimal(of: bytes)
        if let present = try? model(id: id), (try? verify(present)) != nil { return present }

        let made = home.appendingPathComponent(Self.unfinished + UUID().uuidString, isDirectory: true)
        try writing { try FileManager.default.createDirectory(at: home, withIntermediateDirectories: true) }
        try checkSpace(for: manifest)
        defer { try? FileManager.default.removeItem(at: made) }
        let copy = InstalledModel(id: id, folder: made, manifest: manifest)
        try self.copy(from: source, to: copy, manifestBytes: bytes, progress: progress)
        try verify(copy)
        try Task.checkCancellation()
        let place = home.appendingPathComponent(id, isDirectory: true)
        try writing {
            try? FileManager.default.removeItem(at: place)  // damaged, or it would have been returned
            try FileManager.default.moveItem(at: made, to: place)
        }
        progress(1)
        return InstalledModel(id: id, folder: place, manifest: manifest)
    }

    /// All whole models, by name.
    public func models() -> [InstalledModel] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: home.path)) ?? []
        let found = names.compactMap { try? model(id: $0) }
        return found.sorted { ($0.manifest.name, $0.id) < ($1.manifest.name, $1.id) }
    }

    public func remove(_ model: InstalledModel) throws {
        try writing { try FileManager.default.removeItem(at: model.folder) }
    }

    /// Removes what an import left that ended with the app; call it when none is under way.
    public func removeUnfinished() {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: home.path)) ?? []
        for name in names where name.hasPrefix(Self.unfinished) {
            try? FileManager.default.removeItem(at: home.appendingPathComponent(name))
        }
    }

    /// Compares every file of a model with its manifest.
    public func verify(_ model: InstalledModel) throws {
        try Self.compare(try FileTree(model.export, most: Self.mostFiles), with: model.manifest)
        for file in model.manifest.files {
            var hash = ImportSHA256()
            try FileTree.read(model.export, file.path, most: file.bytes) { hash.update($0) }
            guard hash.hexadecimal() == file.sha256 else { throw ImportError.changed(file.path) }
        }
    }

    private func model(id: String) throws -> InstalledModel {
        let folder = home.appendingPathComponent(id, isDirectory: true)
        let bytes = try Self.manifestBytes(folder.appendingPathComponent("export"))
        guard ImportSHA256.hexadecimal(of: bytes) == id else { throw ImportError.changed(Manifest.fileName) }
        return InstalledModel(id: id, folder: folder, manifest: try Manifest(bytes))
    }

    private func copy(
        from source: URL, to model: InstalledModel, manifestBytes: [UInt8], progress: (Double) -> Void
    ) throws {
        let manager = FileManager.default
        try writing {
            try manager.createDirectory(at: model.export, withIntermediateDirectories: true)
            try Self.keepOnDevice(model.folder)
            try Data(manifestBytes).write(to: model.export.appendingPathComponent(Manifest.fileName))
        }
        var done = 0
        for file in model.manifest.files {
            let target = model.export.appendingPathComponent(file.path)
            let handle = try writing {
                try manager.createDirectory(at: target.deletingLastPathComponent(), withIntermediateDirectories: true)
                guard manager.createFile(atPath: target.path, contents: nil) else {
                    throw ImportError.unwritable(reason: file.path)
                }
                return try FileHandle(forWritingTo: target)
            }
            defer { try? handle.close() }
            try FileTree.read(source, file.path, most: file.bytes) { part in
                try writing { try handle.write(contentsOf: part) }
                done += part.count
                progress(Double(done) / Double(max(1, model.manifest.totalBytes)))
            }
            try writing { try handle.synchronize() }
        }
    }

    private func checkSpace(for manifest: Manifest) throws {
        let needed = 2 * manifest.totalBytes + Self.spare
        if let free = freeBytes(home), free < needed { throw ImportError.noSpace(needed: needed, free: free) }
    }

    private func writing<Result>(_ body: () throws -> Result) throws -> Result {
        do { return try body() } catch let error as ImportError { throw error } catch {
            throw ImportError.unwritable(reason: error.localizedDescription)
        }
    }

    private static func manifestBytes(_ folder: URL) throws -> [UInt8] {
        let path = Manifest.fileName
        guard FileManager.default.fileExists(atPath: folder.appendingPathComponent(path).path) else {
            throw ImportError.noManifest
        }
        if case .file(let bytes) = try FileTree.kind(folder, path), bytes > Manifest.mostBytes {
            throw ManifestError.tooLarge(bytes: bytes, most: Manifest.mostBytes)
        }
        var bytes: [UInt8] = []
        try FileTree.read(folder, path, most: Manifest.mostBytes) { bytes += $0 }
        return bytes
    }

    /// Whether a manifest lists a model that can work and is not too large, whatever the files are.
    private static func checkListing(_ manifest: Manifest) throws(ImportError) {
        guard manifest.files.count < mostFiles else { throw .tooManyFiles(most: mostFiles) }
        guard manifest.totalBytes <= mostBytes else { throw .tooLarge(bytes: manifest.totalBytes, most: mostBytes) }
        for needed in [Manifest.tokenizerName, "\(manifest.package)/Manifest.json"]
        where !manifest.files.contains(where: { $0.path == needed }) {
            throw .incomplete(needs: needed)
        }
    }

    private static func compare(_ tree: FileTree, with manifest: Manifest) throws(ImportError) {
        var found = tree.files
        guard found.removeValue(forKey: Manifest.fileName) != nil else { throw .noManifest }
        for file in manifest.files {
            guard let bytes = found.removeValue(forKey: file.path) else { throw .missing(file.path) }
            guard bytes == file.bytes else { throw .wrongSize(file.path, bytes: bytes, wanted: file.bytes) }
        }
        if let path = found.keys.min() { throw .unlisted(path) }
    }

    /// Models come back by importing them again, so that backups need not hold them.
    private static func keepOnDevice(_ folder: URL) throws {
        #if canImport(Darwin)
            var (folder, values) = (folder, URLResourceValues())
            values.isExcludedFromBackup = true
            try folder.setResourceValues(values)
        #endif
    }

    private static func freeBytes(_ folder: URL) -> Int? {
        #if canImport(Darwin)
            let key = URLResourceKey.volumeAvailableCapacityForImportantUsageKey
            let values = try? folder.resourceValues(forKeys: [key])
            return values?.volumeAvailableCapacityForImportantUsage.flatMap { Int(exactly: $0) }
        #else
            let values = try? FileManager.default.attributesOfFileSystem(forPath: folder.path)
            return (values?[.systemFreeSize] as? NSNumber)?.intValue
        #endif
    }
}
