import Foundation
import TRMBenchKit
import TRMCore
import TRMReference

/// `trm-bench bench`: measures one model at one depth and writes a report.
enum BenchCommand {
    static func run(_ words: [String]) async throws -> Int32 {
        let options = try BenchOptions(words)
        if let file = options.json, file != "-" { try check(file) }
        switch options.backend {
        case .table:
            throw UsageError("--backend table is not built yet")
        case .model(let path):
            let folder = URL(fileURLWithPath: path)
            guard !FileManager.default.fileExists(atPath: folder.appendingPathComponent("manifest.json").path) else {
                return try export()
            }
            guard options.units.isEmpty, !options.listFunctions else {
                throw UsageError("--units and --list-functions are for an export folder, got a model folder")
            }
            return try await reference(folder, options)
        }
    }

    /// An export folder, which Core ML runs.
    private static func export() throws -> Int32 {
        #if canImport(CoreML)
            throw UsageError("measuring an export folder is not built yet")
        #else
            say("trm-bench: an export folder runs on Core ML, which only Apple's systems have; give a model folder")
            return Exit.invalid
        #endif
    }

    private static func reference(_ folder: URL, _ options: BenchOptions) async throws -> Int32 {
        let shape = try ModelFolder(contentsOf: folder)
        let fingerprint = try ModelFolder.fingerprint(of: folder)
        let depth = options.depth ?? shape.shape.depth
        guard depth <= shape.shape.depth else {
            throw UsageError(
                "--depth must be 1 to \(shape.shape.depth), the most this model was made for, got \(depth)")
        }
        var runner = BenchRunner(plan: options.plan, depth: depth)
        runner.progress = { say("depth \(depth)  \($0)") }
        let measured = try await runner.run { try ReferenceModel(contentsOf: folder) }
        guard try ModelFolder.fingerprint(of: folder) == fingerprint else { throw BenchError.changed }
        let report = try BenchReport(
            plan: options.plan, measured: measured, tool: BenchReport.Tool(name: "trm-bench", runtime: "reference"),
            model: BenchReport.Model(
                name: folder.resolvingSymlinksInPath().lastPathComponent, revision: shape.revision,
                manifestSha256: fingerprint, parameters: shape.parameters, recursions: depth,
                weightsBytes: shape.weightsBytes, precision: "float32"),
            context: shape.shape.context)
        return try finish(report, options)
    }

    /// Writes and shows a report; gives the exit status.
    private static func finish(_ report: BenchReport, _ options: BenchOptions) throws -> Int32 {
        if options.json == "-" {
            FileHandle.standardOutput.write(try report.json())
        } else if let file = options.json {
            try report.json().write(to: URL(fileURLWithPath: file), options: .atomic)
        }
        say(report.table())
        return report.summary.valid ? Exit.done : Exit.invalid
    }

    /// Refuses a file that could not be written, before there is anything to write.
    private static func check(_ file: String) throws {
        let url = URL(fileURLWithPath: file)
        let manager = FileManager.default
        var inFolder: ObjCBool = false
        let there = manager.fileExists(atPath: url.deletingLastPathComponent().path, isDirectory: &inFolder)
        var isFolder: ObjCBool = false
        let taken = manager.fileExists(atPath: url.path, isDirectory: &isFolder)
        guard there, inFolder.boolValue, !(taken && isFolder.boolValue) else {
            throw UsageError("--json must name a file in a folder that is there, got \(file.debugDescription)")
        }
    }
}
