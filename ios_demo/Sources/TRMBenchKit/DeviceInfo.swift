import Foundation

#if canImport(Darwin)
    import Darwin
#elseif canImport(Glibc)
    import Glibc
#endif

/// How hot a device is.
public enum Thermal: String, Codable, Sendable {
    case nominal, fair, serious, critical, unknown

    var hot: Bool { self == .fair || self == .serious || self == .critical }

    public static func now() -> Thermal {
        #if canImport(Darwin)
            switch ProcessInfo.processInfo.thermalState {
            case .nominal: .nominal
            case .fair: .fair
            case .serious: .serious
            case .critical: .critical
            @unknown default: .unknown
            }
        #else
            .unknown
        #endif
    }
}

/// The kind of a device; nothing here names one device, since a report may be passed on.
public struct DeviceInfo: Codable, Equatable, Sendable {
    public let model: String
    public let chip: String?
    public let os: String
    public let osVersion: String
    public let cores: Int
    public let memoryBytes: Int
    public let simulator: Bool
    public let lowPowerMode: Bool?

    public static func here() -> DeviceInfo {
        let process = ProcessInfo.processInfo
        let memory = Int(clamping: process.physicalMemory)
        #if canImport(Darwin)
            #if os(macOS)
                let (os, key) = ("macOS", "hw.model")
            #else
                let (os, key) = ("iOS", "hw.machine")
            #endif
            #if targetEnvironment(simulator)
                let simulator = true
            #else
                let simulator = false
            #endif
            let version = process.operatingSystemVersion
            return DeviceInfo(
                model: told(key) ?? "unknown", chip: told("machdep.cpu.brand_string"), os: os,
                osVersion: "\(version.majorVersion).\(version.minorVersion).\(version.patchVersion)",
                cores: process.processorCount, memoryBytes: memory, simulator: simulator,
                lowPowerMode: process.isLowPowerModeEnabled)
        #else
            var names = utsname()
            let known = uname(&names) == 0
            return DeviceInfo(
                model: known ? text(names.machine) : "unknown", chip: nil, os: "Linux",
                osVersion: known ? text(names.release) : "unknown", cores: process.processorCount,
                memoryBytes: memory, simulator: false, lowPowerMode: nil)
        #endif
    }

    #if canImport(Darwin)
        private static func told(_ name: String) -> String? {
            var size = 0
            guard sysctlbyname(name, nil, &size, nil, 0) == 0, size > 0 else { return nil }
            var bytes = [UInt8](repeating: 0, count: size)
            guard sysctlbyname(name, &bytes, &size, nil, 0) == 0 else { return nil }
            return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    #else
        /// Text from C's characters up to the zero, which come as a tuple.
        private static func text<Characters>(_ characters: Characters) -> String {
            withUnsafeBytes(of: characters) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        }
    #endif
}
