import TRMBenchKit

/// `trm-bench generate`: writes with a model folder.
enum GenerateCommand {
    static let help = "trm-bench generate is not built yet"

    static func run(_ words: [String]) async throws -> Int32 {
        throw UsageError(help)
    }
}
