import Foundation
import TRMReference
import Testing

@testable import TRMBenchKit

@Suite struct ShippedModelTests {
    struct Shipped: Decodable {
        struct Depth: Decodable { let depth: Int, tokensSha256: String }

        let name: String
        let promptTokens, newTokens: Int
        let seed: UInt64
        let depths: [Depth]
    }

    /// `python tests/golden/make_reference.py` refreshes what is expected.
    @Test func theModelThatShipsWritesTheTokensThatMLXWrites() async throws {
        let record = try golden(Shipped.self, "tests/golden/reference/shipped.json")
        let folder = repository.appendingPathComponent("trm_mlx/pretrained/\(record.name)")
        let plan = try BenchPlan(
            promptTokens: record.promptTokens, newTokens: record.newTokens, trials: 1, warmup: 0, cooldown: 0,
            seed: record.seed)
        let contents = try ModelFolder(contentsOf: folder)
        #expect(record.depths.count > 1)
        for each in record.depths {
            let measured = try await BenchRunner(plan: plan, depth: each.depth).run { ReferenceModel(contents) }
            #expect(measured.trials.map(\.tokensSha256) == [each.tokensSha256], "depth \(each.depth)")
            #expect(measured.trials.allSatisfy { $0.ttftNs > 0 && $0.tpotNs.allSatisfy { $0 > 0 } })
        }
    }
}
