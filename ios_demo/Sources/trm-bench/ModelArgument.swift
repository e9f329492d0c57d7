import Foundation
import TRMBenchKit
import TRMCore
import TRMReference

/// The folder that `--model` names.
struct ModelArgument {
    let folder: URL
    private let path: String

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
}

/// Tells that an export folder cannot be run here.
func refuseExport() -> Int32 {
    say("trm-bench: an export folder runs on Core ML, which only Apple's systems have; give a model folder")
    return Exit.invalid
}
