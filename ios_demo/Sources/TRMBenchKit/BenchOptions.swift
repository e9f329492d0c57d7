/// What `trm-bench bench` is asked for.
public struct BenchOptions: Equatable, Sendable {
    public static let help = """
        usage: trm-bench [bench] (--model DIR | --backend table) [options]
               trm-bench bench --model DIR --list-functions
               trm-bench generate --help, and speed --help

          --model DIR        model folder, or on Apple's systems an export folder
          --backend table    scores from a hash in place of a model: what the loop itself costs
          --depth R          passes through the core (default: all)
          -p N               tokens read before the first one is made (default: 128)
          -g N               tokens made (default: 256)
          -n N               texts that are measured (default: 10)
          --warmup N         texts before them that are not (default: 2)
          --cooldown S       seconds between two trials (default: 5)
          --seed N           fixes the prompt (default: 0)
          --sustained S      then write for so many seconds, and tell the speed every 10 (default: 0)
          --json FILE        report to write, - for stdout; if there are several, one each: NAME-cpuOnly.json
          --units A,B        Core ML compute units: cpuOnly, cpuAndGPU, cpuAndNeuralEngine (default: all, in turn)
          --list-functions   name the functions of an export folder, and measure nothing

        Exits with 0 after a valid measurement, 3 if it does not count or this machine
        cannot, 2 if asked wrongly, 1 on failure.
        """

    public static let allUnits = ["cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine"]

    public enum Backend: Equatable, Sendable {
        case model(folder: String)
        case table
    }

    public let backend: Backend
    public let depth: Int?
    public let plan: BenchPlan
    /// A file, or `-`.
    public let json: String?
    public let units: [String]
    public let listFunctions: Bool

    /// - Throws: `UsageError`.
    public init(_ words: [String]) throws {
        let found = try Arguments(
            words,
            valued: [
                "--model", "--backend", "--depth", "-p", "-g", "-n", "--warmup", "--cooldown", "--seed",
                "--sustained", "--json", "--units",
            ], plain: ["--list-functions"])
        switch (try found.name("--model"), try found.name("--backend")) {
        case (let folder?, nil): backend = .model(folder: folder)
        case (nil, "table"): backend = .table
        case (nil, let name?): throw UsageError("--backend must be table, got \(name.debugDescription)")
        case (nil, nil): throw UsageError("give --model DIR or --backend table; see --help")
        case (_?, _?): throw UsageError("give --model or --backend, not both")
        }
        let count = "a whole number"
        depth = try found.number("--depth", as: count)
        if let depth, depth < 1 { throw UsageError("--depth must be at least 1, got \(depth)") }
        let seconds = "a number of seconds"
        do {
            plan = try BenchPlan(
                promptTokens: found.number("-p", as: count) ?? 128, newTokens: found.number("-g", as: count) ?? 256,
                trials: found.number("-n", as: count) ?? 10, warmup: found.number("--warmup", as: count) ?? 2,
                cooldown: found.number("--cooldown", as: seconds) ?? 5,
                seed: found.number("--seed", as: "a whole number from 0 to 2^64 - 1") ?? 0,
                sustained: found.number("--sustained", as: seconds) ?? 0)
        } catch BenchError.plan(let reason) {
            throw UsageError(reason)
        }
        json = try found.name("--json")
        let listed = try found.name("--units")?.split(separator: ",", omittingEmptySubsequences: false)
        units = listed?.map(String.init) ?? []
        if let unknown = units.first(where: { !Self.allUnits.contains($0) }) {
            let known = Self.allUnits.joined(separator: ", ")
            throw UsageError("--units must be of \(known), got \(unknown.debugDescription)")
        }
        guard Set(units).count == units.count else { throw UsageError("--units must name each once") }
        listFunctions = found.flags.contains("--list-functions")
        if listFunctions, let other = found.flags.subtracting(["--model", "--list-functions"]).min() {
            throw UsageError("--list-functions measures nothing, so \(other) has no place beside it")
        }
        if backend == .table, let other = found.flags.intersection(["--depth", "--units"]).max() {
            throw UsageError("\(other) is for a model, and --backend table has none")
        }
    }

    /// Where the report of each of some compute units goes: beside a file for one alone, NAME-cpuOnly.json and so on.
    ///
    /// - Throws: `UsageError`: standard output would get several.
    public func files(for units: [String]) throws -> [String?] {
        guard let json, units.count > 1 else { return units.map { _ in json } }
        guard json != "-" else { throw UsageError("--json - takes one report; name one of --units, or a file") }
        let name = json.hasSuffix(".json") ? String(json.dropLast(5)) : json
        return units.map { "\(name)-\($0).json" }
    }
}
