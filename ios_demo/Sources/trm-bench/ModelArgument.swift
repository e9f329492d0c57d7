import Foundation
import TRMBenchKit
import TRMCore
import TRMDemoModel
import TRMReference

/// The folder that `--model` names.
struct ModelArgument {
    let folder: URL
    private let path: String

    #if canImport(CoreML)
        static let coreMLIsHere = true
    #else
        static let coreMLIsHere = false
    #endif

    init(_ path: String) { (self.path, folder) = (path, URL(fileURLWithPath: path)) }

    /// Whether it is an export folder, which Core ML runs.
    var isExport: Bool { FileManager.default.fileExists(atPath: manifestFile.path) }

    private var manifestFile: URL { folder.appendingPathComponent(Manifest.fileName) }

    /// - Throws: `UsageError`: it is no model folder, or a damaged one.
    func modelFolder() throws -> ModelFolder {
        var isFolder: ObjCBool = false
        let there = FileManager.default.fileExists(atPath: path, isDirectory: &isFolder)
        guard there, isFolder.boolValue else { throw UsageError("there is no model folder at \(path)") }
        do { return try ModelFolder(contentsOf: folder) } catch let error as ModelFolderError {
            throw UsageError("\(path): \(error.localizedDescription)")
        }
    }

    /// - Throws: `UsageError`: it is no export folder, or a damaged one.
    func manifest() throws -> Manifest {
        guard isExport else { throw UsageError("\(path) must be an export folder, and has no \(Manifest.fileName)") }
        let handle = try FileHandle(forReadingFrom: manifestFile)
        defer { try? handle.close() }
        do { return try Manifest([UInt8](handle.read(upToCount: Manifest.mostBytes + 1) ?? Data())) } catch let error
            as ManifestError
        {
            throw UsageError("\(path): \(error.localizedDescription)")
        }
    }

    /// A checked copy of the export folder, which stays in the user's caches with what Core ML compiles from it.
    ///
    /// - Throws: `UsageError`: it is no export folder, or a damaged one. `ImportError`: it cannot be copied.
    func installed() throws -> InstalledModel {
        let caches = try FileManager.default.url(
            for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        let store = ModelStore(home: caches.appendingPathComponent("trm-bench", isDirectory: true))
        do { return try store.add(folder) } catch let error as ImportError {
            switch error {
            case .noSpace, .unwritable: throw error
            default: throw UsageError("\(path): \(error.localizedDescription)")
            }
        } catch let error as ManifestError {
            throw UsageError("\(path): \(error.localizedDescription)")
        }
    }

    /// What writes: Core ML with an export folder, the reference engine with a model folder.
    func engine() async throws -> Engine {
        if isExport { return try await Engine.load(.export(installed()), .cpuAndNeuralEngine) }
        let contents = try modelFolder()
        let tokenizer = try Tokenizer(contentsOf: folder.appendingPathComponent(Manifest.tokenizerName))
        let generator = Generator(codec: tokenizer) { ReferenceModel(contents) }
        return Engine(generator: generator, tokenizer: tokenizer, limits: try await generator.prepare())
    }
}

/// Tells that an export folder cannot be run here.
func refuseExport() -> Int32 {
    say("trm-bench: an export folder runs on Core ML, which only Apple's systems have; give a model folder")
    return Exit.invalid
}
