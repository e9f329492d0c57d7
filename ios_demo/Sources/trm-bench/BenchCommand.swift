import Foundation
import TRMBenchKit
import TRMCore
import TRMCoreML
import TRMDemoModel
import TRMReference

/// `trm-bench bench`: measures one model at one depth and writes a report.
enum BenchCommand {
    static func run(_ words: [String]) async throws -> Int32 {
        let options = try BenchOptions(words)
        if let file = options.json, file != "-" { try check(file) }
        guard case .model(let path) = options.backend else { return try await table(options) }
        let model = ModelArgument(path)
        if options.listFunctions { return try list(model.manifest()) }
        if model.isExport {
            return ModelArgument.coreMLIsHere ? try await export(model, options) : refuseExport()
        }
        guard options.units.isEmpty else { throw UsageError("--units is for an export folder, got a model folder") }
        return try await reference(model, options)
    }

    /// A line for each depth of an export folder.
    private static func list(_ manifest: Manifest) throws -> Int32 {
        for pair in manifest.functions {
            try tell("depth \(pair.depth)  decode \(pair.decode)  prefill \(pair.prefill)\n".utf8)
        }
        return Exit.done
    }

    /// A report for each of the compute units.
    private static func export(_ model: ModelArgument, _ options: BenchOptions) async throws -> Int32 {
        let depths = try model.manifest().depths
        let depth = options.depth ?? depths.max() ?? 1
        guard depths.contains(depth) else {
            let known = depths.map(String.init).joined(separator: " or ")
            throw UsageError("--depth must be \(known), which this model was exported for, got \(depth)")
        }
        let asked = options.units.compactMap(ComputeUnits.init)
        let chosen = asked.isEmpty ? ComputeUnits.allCases.reversed() : asked
        let files = try options.files(for: chosen.map(\.rawValue))
        for case let file? in files where file != "-" { try check(file) }
        let installed = try model.installed()
        var status = Exit.done
        for (units, file) in zip(chosen, files) {
            do {
                let subject = BenchSubject.coreML(installed, units, tool: "trm-bench")
                let report = try await subject.measure(options.plan, depth) {
                    say("\(units.rawValue)  depth \(depth)  \($0)")
                }
                status = max(status, try finish(report, file))
            } catch let error where error is BenchRefusal || error is EngineError {
                say("trm-bench: \(units.rawValue) was not measured: \(error.localizedDescription)")
                status = Exit.invalid
            }
        }
        return status
    }

    private static func reference(_ model: ModelArgument, _ options: BenchOptions) async throws -> Int32 {
        let contents = try model.modelFolder()
        let folder = model.folder
        let fingerprint = try ModelFolder.fingerprint(of: folder)
        let depth = options.depth ?? contents.shape.depth
        guard depth <= contents.shape.depth else {
            throw UsageError(
                "--depth must be 1 to \(contents.shape.depth), the most this model was made for, got \(depth)")
        }
        let described = BenchReport.Model(
            name: folder.resolvingSymlinksInPath().lastPathComponent, revision: contents.revision,
            manifestSha256: fingerprint, parameters: contents.parameters, recursions: depth,
            weightsBytes: contents.weightsBytes, precision: "float32")
        let context = contents.shape.context
        return try await measure(options, "reference", described, context: context) {
            try ReferenceModel(contentsOf: folder)
        } after: {
            guard try ModelFolder.fingerprint(of: folder) == fingerprint else { throw BenchError.changed }
        }
    }

    /// Scores from a hash: what the loop itself costs at a vocabulary of the presets.
    private static func table(_ options: BenchOptions) async throws -> Int32 {
        let (vocabulary, context) = (8192, options.plan.promptTokens + options.plan.newTokens)
        let name = "table of \(vocabulary) tokens"
        let digest = SHA256Hash.hexadecimal(of: Array(name.utf8))  // of a name, as there are no files
        let described = BenchReport.Model(
            name: name, revision: digest, manifestSha256: digest, parameters: 0, recursions: 1, weightsBytes: 0,
            precision: "float32")
        return try await measure(options, "table", described, context: context) {
            TableStepModel(vocabulary: vocabulary, context: context)
        }
    }

    /// - Parameter check: what must hold of the model afterwards.
    private static func measure(
        _ options: BenchOptions, _ runtime: String, _ model: BenchReport.Model, context: Int,
        make: @Sendable () throws -> any StepModel, after check: () throws -> Void = {}
    ) async throws -> Int32 {
        var runner = BenchRunner(plan: options.plan, depth: model.recursions)
        runner.progress = { say("depth \(model.recursions)  \($0)") }
        let measured = try await runner.run(make)
        try check()
        let report = try BenchReport(
            plan: options.plan, measured: measured, tool: BenchReport.Tool(name: "trm-bench", runtime: runtime),
            model: model, context: context)
        return try finish(report, options.json)
    }

    /// Writes and shows a report; gives the exit status.
    ///
    /// - Parameter file: or `-`.
    private static func finish(_ report: BenchReport, _ file: String?) throws -> Int32 {
        if file == "-" {
            try tell(report.json())
        } else if let file {
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
