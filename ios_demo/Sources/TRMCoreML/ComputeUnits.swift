/// Processors that Core ML may use. `all` is not among them: what it chooses cannot be known before.
public enum ComputeUnits: String, Sendable, Codable, CaseIterable {
    case cpuAndNeuralEngine, cpuAndGPU, cpuOnly

    /// What is tried in turn: these, and then those that fewer models fail on.
    public var ladder: [ComputeUnits] { Array(Self.allCases[(Self.allCases.firstIndex(of: self) ?? 0)...]) }

    /// For people.
    public var name: String {
        switch self {
        case .cpuAndNeuralEngine: "CPU and Neural Engine"
        case .cpuAndGPU: "CPU and GPU"
        case .cpuOnly: "CPU"
        }
    }
}
