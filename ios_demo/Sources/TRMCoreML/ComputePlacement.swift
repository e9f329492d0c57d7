import Foundation

#if canImport(CoreML)
    @preconcurrency import CoreML
#endif

/// Where Core ML plans to run a function: operations, and shares of the estimated cost. Constants are not counted.
public struct ComputePlacement: Equatable, Sendable {
    public enum Device: Sendable, CaseIterable {
        case ane, gpu, cpu
    }

    /// Operations on each device.
    public private(set) var operations: [Device: Int] = [:]
    /// Shares of the cost, nil if Core ML estimates none.
    public private(set) var costs: [Device: Double]?

    init?(_ planned: [(device: Device, cost: Double)]) {
        guard !planned.isEmpty else { return nil }
        for device in Device.allCases { operations[device] = planned.count { $0.device == device } }
        let total = planned.reduce(0) { $0 + $1.cost }
        guard total > 0 else { return }
        costs = Dictionary(
            uniqueKeysWithValues: Device.allCases.map { device in
                (device, planned.reduce(0) { $0 + ($1.device == device ? $1.cost : 0) } / total)
            })
    }

    #if canImport(CoreML)
        /// The plan for a function of a compiled package; nil if Core ML has none.
        public static func plan(
            compiled: URL, function: String, units: ComputeUnits
        ) async throws -> ComputePlacement? {
            let configuration = MLModelConfiguration()
            configuration.functionName = function
            configuration.computeUnits = units.coreML
            let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: configuration)
            guard case .program(let program) = plan.modelStructure, let found = program.functions[function] else {
                return nil
            }
            var planned: [(device: Device, cost: Double)] = []
            for operation in found.block.operations {
                guard let device = plan.deviceUsage(for: operation)?.preferred else { continue }
                let cost = plan.estimatedCost(of: operation)?.weight ?? 0
                switch device {
                case .neuralEngine: planned.append((.ane, cost))
                case .gpu: planned.append((.gpu, cost))
                case .cpu: planned.append((.cpu, cost))
                @unknown default: continue
                }
            }
            return ComputePlacement(planned)
        }
    #endif
}
