import Foundation
import Synchronization
import TRMCore

@testable import TRMBenchKit

let repository = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

/// What a JSON file of the repository holds.
func golden<Kind: Decodable>(_ kind: Kind.Type, _ path: String) throws -> Kind {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    return try decoder.decode(kind, from: Data(contentsOf: repository.appendingPathComponent(path)))
}

/// Scores from a rule, and a list of what was asked.
final class RuleModel: StepModel {
    let vocabulary = 16
    let context: Int
    let depths = [1, 2]
    private(set) var position = 0
    private let score: @Sendable (Int, Int) -> Float  // of an id, with the text at a position
    private let log: Log

    init(
        context: Int = 64, log: Log = Log(),
        score: @escaping @Sendable (Int, Int) -> Float = { id, at in
            id == at % 16 ? 1 : 0
        }
    ) {
        (self.context, self.log, self.score) = (context, log, score)
    }

    func reset(depth: Int) throws {
        log.add("reset \(depth)")
        position = 0
    }

    func append(_ tokens: [Int32]) throws -> [Float] {
        log.add("append \(tokens.count)")
        position += tokens.count
        return (0..<vocabulary).map { score($0, position) }
    }
}

/// Lines from several threads.
final class Log: Sendable {
    private let held = Mutex<[String]>([])

    func add(_ line: String) { held.withLock { $0.append(line) } }
    var lines: [String] { held.withLock { $0 } }
}

/// A clock that goes on by a step whenever it is looked at.
final class StepClock: Sendable {
    private let now = Mutex(0)
    private let step: Int

    init(step: Int) { self.step = step }

    func look() -> Int {
        now.withLock {
            $0 += step
            return $0
        }
    }
}

extension BenchRunner {
    /// A runner that waits for nothing.
    static func still(
        _ plan: BenchPlan, step: Int = 1_000_000, log: Log = Log(),
        thermal: @escaping @Sendable () -> Thermal = { .nominal }
    ) -> BenchRunner {
        var runner = BenchRunner(plan: plan, depth: 2)
        let clock = StepClock(step: step)
        runner.clock = { clock.look() }
        runner.sleep = { log.add("sleep \($0)") }
        runner.memory = { 1000 }
        runner.thermal = thermal
        return runner
    }
}

extension BenchReport {
    /// A report of a run, made by a release build of a device that is cool, unless it says otherwise.
    static func of(
        _ measured: BenchRunner.Measured, plan: BenchPlan, build: String = "release", simulator: Bool = false,
        lowPower: Bool? = nil
    ) throws -> BenchReport {
        let device = DeviceInfo(
            model: "iPhone17,1", chip: nil, os: "iOS", osVersion: "18.1.0", cores: 6, memoryBytes: 1 << 33,
            simulator: simulator, lowPowerMode: lowPower)
        let digest = String(repeating: "a", count: 64)
        return try BenchReport(
            plan: plan, measured: measured, tool: Tool(name: "TRMDemo", runtime: "table", build: build),
            model: Model(
                name: "m", revision: "r", manifestSha256: digest, parameters: 1, recursions: 2, weightsBytes: nil,
                precision: nil), context: 64, device: device)
    }
}
