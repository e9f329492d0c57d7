import Foundation
import Testing

@testable import TRMCore
@testable import TRMCoreML

/// On a Mac, with `TRM_EXPORT` naming an export folder: Core ML itself, on the units that `TRM_UNITS` names or the CPU.
@Suite struct RealPackageTests {
    private static let environment = ProcessInfo.processInfo.environment

    private struct Golden: Decodable {
        struct Continuation: Decodable {
            let depth: Int
            let text: String
            let prompt, ids: [Int32]
            let lead: Float
        }

        let continuations: [Continuation]
    }

    @Test(.enabled(if: environment["TRM_EXPORT"] != nil)) func anExportWritesItsGoldenTexts() async throws {
        let export = URL(fileURLWithPath: try #require(Self.environment["TRM_EXPORT"]))
        let units = try #require(ComputeUnits(rawValue: Self.environment["TRM_UNITS"] ?? "cpuOnly"))
        let home = FileManager.default.temporaryDirectory.appendingPathComponent("trm-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: home) }
        let installed = try ModelStore(home: home).add(export)
        let loader = try await ModelInstaller().loader(for: installed)
        let model = try loader.load(preferring: units) { report in
            #expect(report.units == units && report.notes.isEmpty, "\(report.notes)")
        }
        let content = try Data(contentsOf: export.appendingPathComponent("golden.json"))
        for golden in try JSONDecoder().decode(Golden.self, from: content).continuations {
            try model.reset(depth: golden.depth)
            var (given, written) = (golden.prompt, [Int32]())
            for _ in golden.ids {
                let scores = try model.append(given)
                given = [Int32(try #require(scores.indices.max { scores[$0] < scores[$1] }))]
                written += given
            }
            // Half precision may decide otherwise where MLX itself hardly decided.
            #expect(written == golden.ids || golden.lead < 0.02, "depth \(golden.depth), \(golden.text)")
        }
    }
}
