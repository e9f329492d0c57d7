import Foundation

/// Files that outlive the app: one for each of the compute units that are being tried.
///
/// Core ML can load a model, pass every check and then end the process at the first prediction. A file that is still
/// there at the next launch says so; its unit is left alone until `forget`, or until the system is updated.
public struct CrashSentinel: Sendable {
    private let folder: URL

    /// - Parameter folder: of one model on one version of the system.
    public init(folder: URL) { self.folder = folder }

    /// Those that ended the app.
    public var killers: [ComputeUnits] {
        ComputeUnits.allCases.filter { FileManager.default.fileExists(atPath: file($0).path) }
    }

    /// They are about to be tried. On a disk that takes no file they are tried without it.
    func begin(_ units: ComputeUnits) {
        try? FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try? Data("probing:\(units.rawValue)".utf8).write(to: file(units))
    }

    /// The app is still there.
    func end(_ units: ComputeUnits) { try? FileManager.default.removeItem(at: file(units)) }

    /// Lets all of them be tried again.
    public func forget() { ComputeUnits.allCases.forEach(end) }

    private func file(_ units: ComputeUnits) -> URL { folder.appendingPathComponent("probing-\(units.rawValue)") }
}
