import Foundation
import TRMCore
import TRMCoreML
import TRMReference

/// The models that this app has, of both kinds.
public struct ModelLibrary: Sendable {
    private let home: URL
    private let exports: ModelStore
    private let folders: FolderStore

    /// - Parameter home: a folder that only this app writes to; it is made at the first import.
    public init(home: URL) {
        self.home = home
        exports = ModelStore(home: home.appendingPathComponent("exports", isDirectory: true))
        folders = FolderStore(home: home.appendingPathComponent("folders", isDirectory: true))
    }

    /// All whole models, by name.
    public func models() -> [StoredModel] {
        let found = exports.models().map(StoredModel.export) + folders.models().map(StoredModel.folder)
        return found.sorted { ($0.name, $0.id) < ($1.name, $1.id) }
    }

    /// Copies a folder into the library and checks the copy. Nothing stays of what was refused.
    ///
    /// - Parameters:
    ///   - folder: an export folder or a model folder; nothing in it is trusted.
    ///   - progress: is given the share that is copied, 0 to 1.
    public func add(_ folder: URL, progress: (Double) -> Void = { _ in }) throws -> StoredModel {
        #if canImport(Darwin)
            let scoped = folder.startAccessingSecurityScopedResource()
            defer { if scoped { folder.stopAccessingSecurityScopedResource() } }
        #endif
        let source = folder.resolvingSymlinksInPath()
        if Self.has(Manifest.fileName, source) { return .export(try exports.add(source, progress: progress)) }
        guard Self.has(FolderStore.config, source) else { throw LibraryError.noModel(folder.lastPathComponent) }
        try makeHome()
        return .folder(try folders.add(source, progress: progress))
    }

    /// Whether the model in a folder is here, as it is there.
    func holds(_ folder: URL) -> Bool {
        if let manifest = try? Data(contentsOf: folder.appendingPathComponent(Manifest.fileName)) {
            let id = SHA256Hash.hexadecimal(of: [UInt8](manifest))
            return exports.models().contains { $0.id == id }
        }
        let fingerprint = try? ModelFolder.fingerprint(of: folder)
        return folders.models().contains { $0.record.fingerprint == fingerprint }
    }

    public func remove(_ model: StoredModel) throws {
        switch model {
        case .export(let model): try exports.remove(model)
        case .folder(let model): try folders.remove(model)
        }
    }

    /// Removes what an import left that ended with the app; call it when none is under way.
    public func removeUnfinished() {
        exports.removeUnfinished()
        folders.removeUnfinished()
    }

    /// The folders of models that lie in a folder, which may be one itself.
    public static func candidates(in folder: URL) -> [URL] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        let inside = names.sorted().map { folder.appendingPathComponent($0, isDirectory: true) }
        return ([folder] + inside).filter { has(Manifest.fileName, $0) || has(FolderStore.config, $0) }
    }

    private static func has(_ file: String, _ folder: URL) -> Bool {
        FileManager.default.fileExists(atPath: folder.appendingPathComponent(file).path)
    }

    /// Models come back by importing them again, so that backups need not hold them.
    private func makeHome() throws {
        do {
            try FileManager.default.createDirectory(at: home, withIntermediateDirectories: true)
            #if canImport(Darwin)
                var (home, values) = (home, URLResourceValues())
                values.isExcludedFromBackup = true
                try home.setResourceValues(values)
            #endif
        } catch { throw ImportError.unwritable(reason: error.localizedDescription) }
    }
}

/// Why a folder or a model is of no use here.
public enum LibraryError: Error, Equatable, Sendable {
    case noModel(String)
    /// The control tokens of the tokenizer are not those of the manifest.
    case otherTokenizer
}

extension LibraryError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .noModel(let name):
            "There is no model in “\(name)”. Choose the folder that python -m convert or python -m trm_mlx.train wrote."
        case .otherTokenizer: "The tokenizer is not the one that the model was exported with. Export the model again."
        }
    }
}
