import Foundation
import Testing

@testable import TRMBenchKit

/// Numbers that Python gave: tests/golden/make_bench.py.
@Suite struct NumberTests {
    struct Golden: Decodable {
        struct Percentiles: Decodable { let values: [String], p50, p90, p95, mean: String }
        struct Prompt: Decodable { let seed: String, vocabulary: Int, ids: [Int32] }
        struct Greatest: Decodable { let scores: [String], place: Int }

        let percentiles: [Percentiles]
        let prompts: [Prompt]
        let greatest: [Greatest]
    }

    private let golden: Golden

    init() throws {
        golden = try TRMBenchKitTests.golden(Golden.self, "tests/golden/bench.json")
    }

    @Test func percentilesAreNumPysBitForBit() throws {
        #expect(golden.percentiles.count > 10)
        for each in golden.percentiles {
            let values = each.values.compactMap(Double.init)
            let found = try #require(Distribution(values))
            #expect(found.n == values.count)
            #expect(found.p50 == Double(each.p50) && found.p90 == Double(each.p90) && found.p95 == Double(each.p95))
            #expect(abs(found.mean - (Double(each.mean) ?? .nan)) < 1e-12 * found.mean)
            #expect(found.min == values.min() && found.max == values.max())
        }
        #expect(Distribution([]) == nil)
    }

    @Test func promptsAreThoseThatPythonDraws() throws {
        #expect(golden.prompts.count > 4)
        for each in golden.prompts {
            let plan = try BenchPlan(promptTokens: each.ids.count, seed: #require(UInt64(each.seed)))
            #expect(try plan.prompt(vocabulary: each.vocabulary) == each.ids)
        }
        #expect(throws: BenchError.plan("vocabulary must be above 7, got 7")) {
            try BenchPlan().prompt(vocabulary: 7)
        }
    }

    @Test func theGreatestScoreIsWhereNumPyFindsIt() {
        #expect(golden.greatest.count > 5)
        for each in golden.greatest {
            #expect(greatest(each.scores.compactMap { Float($0) }) == each.place, "\(each.scores)")
        }
    }

    @Test(arguments: [
        ("Name:\tx\nVmHWM:\t   1234 kB\nVmRSS:\t 1 kB\n", 1_263_616), ("", 0), ("VmHWM:\t 12 MB\n", 0),
        ("VmHWM: x kB", 0),
        ("VmHWM:\t 9223372036854775807 kB\n", 0),
    ]) func peakMemoryIsReadFromLinuxsStatus(status: String, bytes: Int) {
        #if !canImport(Darwin)
            #expect(MemoryProbe.peak(status: status) == bytes)
        #endif
    }

    @Test func thisProcessHoldsSomeMemory() {
        #expect((1_000_000..<100_000_000_000).contains(MemoryProbe.bytes()))
    }

    @Test func aDeviceIsDescribedAndNotNamed() throws {
        let device = DeviceInfo.here()
        #expect(
            !device.model.isEmpty && device.cores > 0 && device.memoryBytes > 1 << 28 && !device.osVersion.isEmpty)
        #expect(["iOS", "macOS", "Linux"].contains(device.os))
        let told = String(decoding: try JSONEncoder().encode(device), as: UTF8.self)
        #expect(!told.contains(ProcessInfo.processInfo.hostName))
    }

    @Test func aDurationIsToldInNanoseconds() {
        #expect(nanoseconds(.seconds(2) + .nanoseconds(3)) == 2_000_000_003)
        #expect(nanoseconds(.microseconds(-5)) == -5000)
    }
}
