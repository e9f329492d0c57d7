import Foundation
import TRMCore

/// Keeps what Core ML compiles from imported models, for the version of the system that compiled it.
public struct ModelInstaller: Sendable {
    public struct Compiled: Equatable, Sendable {
        public let place: URL
        /// What compiling took; nil if it was done before.
        public let duration: Duration?
    }

    private let build: String
    private let compile: @Sendable (URL) async throws -> URL

    public init() { self.init(build: Self.systemBuild, compile: { try await CoreMLStepModel.compile($0) }) }

    init(build: String, compile: @escaping @Sendable (URL) async throws -> URL) {
        (self.build, self.compile) = (build, compile)
    }

    /// The compiled package of a model, made if there is none for this version of the system.
    public func compiled(_ model: InstalledModel) async throws -> Compiled {
        let manager = FileManager.default
        let folder = folder(of: model)
        let place = folder.appendingPathComponent("\(model.manifest.name).mlmodelc", isDirectory: true)
        if manager.fileExists(atPath: place.path) { return Compiled(place: place, duration: nil) }
        let began = ContinuousClock.now
        let made: URL
        do { made = try await compile(model.package) } catch let error as CancellationError { throw error } catch {
            throw EngineError.notCompiled(reason: error.localizedDescription)
        }
        let near = folder.appendingPathComponent(".compiling-\(UUID().uuidString)", isDirectory: true)
        defer {
            try? manager.removeItem(at: made)
            try? manager.removeItem(at: near)
        }
        do {
            removeOtherBuilds(model)
            try manager.createDirectory(at: folder, withIntermediateDirectories: true)
            try manager.moveItem(at: made, to: near)  // may cross disks, where it is no single step
            try manager.moveItem(at: near, to: place)
        } catch {
            guard manager.fileExists(atPath: place.path) else {
                throw EngineError.notCompiled(reason: error.localizedDescription)
            }
        }
        return Compiled(place: place, duration: ContinuousClock.now - began)
    }

    /// What loads a model, which is compiled first if need be.
    public func loader(for model: InstalledModel) async throws -> EngineLoader {
        let place = try await compiled(model).place
        return EngineLoader(manifest: model.manifest, compiled: place, folder: folder(of: model))
    }

    /// Forgets what was compiled, and which units ended the app: the next load begins anew.
    public func startOver(_ model: InstalledModel) {
        try? FileManager.default.removeItem(at: model.folder.appendingPathComponent("device"))
    }

    private func folder(of model: InstalledModel) -> URL {
        model.folder.appendingPathComponent("device", isDirectory: true)
            .appendingPathComponent(build, isDirectory: true)
    }

    private func removeOtherBuilds(_ model: InstalledModel) {
        let device = folder(of: model).deletingLastPathComponent()
        for name in (try? FileManager.default.contentsOfDirectory(atPath: device.path)) ?? [] where name != build {
            try? FileManager.default.removeItem(at: device.appendingPathComponent(name))
        }
    }

    /// Version and build of the system, fit for a file name.
    static let systemBuild: String = {
        let told = ProcessInfo.processInfo.operatingSystemVersionString
        return String(told.map { $0.isASCII && ($0.isLetter || $0.isNumber) ? $0 : "-" })
    }()
}
