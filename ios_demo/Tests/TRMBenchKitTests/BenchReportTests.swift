import Foundation
import Testing

@testable import TRMBenchKit

@Suite struct BenchReportTests {
    private func report() async throws -> BenchReport {
        let plan = try BenchPlan(promptTokens: 3, newTokens: 4, trials: 2, warmup: 1, cooldown: 0.5, sustained: 1)
        return try .of(try await BenchRunner.still(plan).run { RuleModel() }, plan: plan)
    }

    @Test func aReportIsReadAsItWasWritten() async throws {
        let report = try await report()
        #expect(try BenchReport(json: report.json()) == report)
    }

    @Test func keysAreThoseOfTheSchema() async throws {
        let data = try Data(contentsOf: repository.appendingPathComponent("tests/golden/bench.schema.json"))
        let schema = try #require(try JSONSerialization.jsonObject(with: data) as? [String: Any])
        let json = try await report().json()
        let written = try #require(try JSONSerialization.jsonObject(with: json) as? [String: Any])
        let tables = try #require(schema["properties"] as? [String: [String: Any]])
        #expect(Set(written.keys).isSubset(of: tables.keys))
        for required in try #require(schema["required"] as? [String]) { #expect(written[required] != nil) }
        for (name, table) in tables {
            guard let found = written[name] as? [String: Any] else { continue }
            let known = try #require(table["properties"] as? [String: Any])
            let open = name == "summary" ? ["sustained"] : name == "device" ? ["chip"] : []
            #expect(Set(found.keys).isSubset(of: Set(known.keys).union(open)), "\(name)")
            for required in table["required"] as? [String] ?? [] {
                #expect(found[required] != nil, "\(name).\(required)")
            }
        }
        #expect((written["load"] as? [String: Any])?["compile_ms"] is NSNull)
        let trial = try #require((written["trials"] as? [[String: Any]])?.first)
        let items = try #require(tables["trials"]?["items"] as? [String: Any])
        #expect(Set(trial.keys) == Set(try #require(items["properties"] as? [String: Any]).keys))
    }

    @Test func theTableTellsWhyARunDoesNotCount() async throws {
        let plan = try BenchPlan(promptTokens: 3, newTokens: 4, trials: 1, warmup: 0, cooldown: 0)
        let measured = try await BenchRunner.still(plan).run { RuleModel() }
        let table = try BenchReport.of(measured, plan: plan, build: "debug").table()
        #expect(table.contains("decode   tokens_per_s 1000.00"))
        #expect(table.hasSuffix("not valid: a debug build is slow; build with -c release"))
        #expect(try !BenchReport.of(measured, plan: plan).table().contains("not valid"))
    }
}

@Suite struct BenchOptionsTests {
    @Test func usualValuesAreThoseOfTheProtocol() throws {
        let found = try BenchOptions(["--model", "runs/a"])
        #expect(found.backend == .model(folder: "runs/a") && found.depth == nil && found.json == nil)
        #expect(try found.plan == BenchPlan(promptTokens: 128, newTokens: 256, trials: 10, warmup: 2, cooldown: 5))
        #expect(found.units == [] && !found.listFunctions)
    }

    @Test func everyFlagIsRead() throws {
        let words =
            "--model=a --depth 2 -p 64 -g 32 -n 3 --warmup 0 --cooldown 0.5 --seed 18446744073709551615 "
            + "--sustained 60 --json - --units cpuOnly,cpuAndGPU"
        let found = try BenchOptions(words.split(separator: " ").map(String.init))
        let plan = try BenchPlan(
            promptTokens: 64, newTokens: 32, trials: 3, warmup: 0, cooldown: 0.5, seed: .max, sustained: 60)
        #expect(found.backend == .model(folder: "a") && found.depth == 2 && found.plan == plan && found.json == "-")
        #expect(found.units == ["cpuOnly", "cpuAndGPU"] && !found.listFunctions)
        #expect(try BenchOptions(["--backend", "table"]).backend == .table)
        #expect(try BenchOptions(["--list-functions", "--model", "a"]).listFunctions)
    }

    @Test(arguments: [
        ("", "give --model DIR or --backend table; see --help"),
        ("--model a --backend table", "give --model or --backend, not both"),
        ("--backend other", "--backend must be table, got \"other\""),
        ("--model", "--model must have a value after it"),
        ("--model=", "--model must not be empty"),
        ("--model a --model b", "--model must be given once"),
        ("--model a -p x", "-p must be a whole number, got \"x\""),
        ("--model a -p 1.5", "-p must be a whole number, got \"1.5\""),
        ("--model a -p 0", "prompt tokens must be 1 to 1048576, got 0"),
        ("--model a --depth 0", "--depth must be at least 1, got 0"),
        ("--model a --seed -1", "--seed must be a whole number from 0 to 2^64 - 1, got \"-1\""),
        ("--model a --cooldown nan", "--cooldown must be a number of seconds, got \"nan\""),
        ("--model a --cooldown 0x1p2", "--cooldown must be a number of seconds, got \"0x1p2\""),
        ("--model a --cooldown -1", "cooldown must be 0 to 86400 seconds, got -1.0"),
        ("--model a --units all", "--units must be of cpuOnly, cpuAndGPU, cpuAndNeuralEngine, got \"all\""),
        ("--model a --units ,", "--units must be of cpuOnly, cpuAndGPU, cpuAndNeuralEngine, got \"\""),
        ("--model a --units cpuOnly,cpuOnly", "--units must name each once"),
        ("--model a --list-functions=yes", "--list-functions takes no value, got \"--list-functions=yes\""),
        ("--model a --list-functions -n 3", "--list-functions measures nothing, so -n has no place beside it"),
        (
            "--backend table --list-functions",
            "--list-functions measures nothing, so --backend has no place beside it"
        ),
        ("--backend table --depth 1", "--depth is for a model, and --backend table has none"),
        ("--backend table --units cpuOnly", "--units is for a model, and --backend table has none"),
        ("--model a --other", "unknown argument \"--other\"; see --help"),
        ("a", "unknown argument \"a\"; see --help"),
    ]) func whatCannotBeAskedIsRefusedInOneLine(line: String, sentence: String) {
        let error = #expect(throws: UsageError.self) {
            try BenchOptions(line.split(separator: " ").map(String.init))
        }
        #expect(error?.reason == sentence)
    }

    @Test(arguments: [
        ("runs/a.json", ["cpuOnly"], ["runs/a.json"]),
        ("runs/a.json", ["cpuOnly", "cpuAndGPU"], ["runs/a-cpuOnly.json", "runs/a-cpuAndGPU.json"]),
        ("runs.json/a", ["cpuAndGPU", "cpuOnly"], ["runs.json/a-cpuAndGPU.json", "runs.json/a-cpuOnly.json"]),
        ("-", ["cpuOnly"], ["-"]),
    ]) func eachOfSeveralReportsHasAFile(json: String, units: [String], files: [String]) throws {
        #expect(try BenchOptions(["--model", "a", "--json", json]).files(for: units) == files)
        #expect(try BenchOptions(["--model", "a"]).files(for: units) == units.map { _ in nil })
    }

    @Test func standardOutputTakesOneReport() throws {
        let found = try BenchOptions(["--model", "a", "--json", "-"])
        let error = #expect(throws: UsageError.self) { try found.files(for: ["cpuOnly", "cpuAndGPU"]) }
        #expect(error?.reason == "--json - takes one report; name one of --units, or a file")
    }
}
