// swift-tools-version: 6.0
import PackageDescription

// Core ML exists on Apple's systems only. Elsewhere the adapter is compiled against a stand-in, so that its logic runs.
#if os(Linux)
    let coreML: [Target.Dependency] = ["TRMCore", "CoreMLStub"]
    let coreMLSettings: [SwiftSetting] = [.define("COREML_STUB")]
    let stub: [Target] = [.target(name: "CoreMLStub")]
#else
    let coreML: [Target.Dependency] = ["TRMCore"]
    let coreMLSettings: [SwiftSetting] = []
    let stub: [Target] = []
#endif

let package = Package(
    name: "TRMDemo",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "TRMCore", targets: ["TRMCore"]),
        .library(name: "TRMReference", targets: ["TRMReference"]),
        .library(name: "TRMCoreML", targets: ["TRMCoreML"]),
        .library(name: "TRMDemoModel", targets: ["TRMDemoModel"]),
        .library(name: "TRMBenchKit", targets: ["TRMBenchKit"]),
        .executable(name: "trm-bench", targets: ["trm-bench"]),
    ],
    targets: stub + [
        .target(name: "TRMCore"),
        .target(name: "TRMReference", dependencies: ["TRMCore"]),
        .target(name: "TRMCoreML", dependencies: coreML, swiftSettings: coreMLSettings),
        .target(name: "TRMBenchKit", dependencies: ["TRMCore"]),
        .target(name: "TRMDemoModel", dependencies: ["TRMCore", "TRMReference", "TRMCoreML", "TRMBenchKit"]),
        .executableTarget(
            name: "trm-bench",
            dependencies: ["TRMCore", "TRMReference", "TRMCoreML", "TRMBenchKit", "TRMDemoModel"]),
        .testTarget(name: "TRMCoreTests", dependencies: ["TRMCore"]),
        .testTarget(name: "TRMReferenceTests", dependencies: ["TRMCore", "TRMReference"]),
        .testTarget(name: "TRMCoreMLTests", dependencies: ["TRMCoreML"] + coreML, swiftSettings: coreMLSettings),
        .testTarget(
            name: "TRMDemoModelTests", dependencies: ["TRMDemoModel"] + coreML, swiftSettings: coreMLSettings),
        .testTarget(name: "TRMBenchKitTests", dependencies: ["TRMBenchKit", "TRMReference"]),
    ],
    swiftLanguageModes: [.v6]
)
