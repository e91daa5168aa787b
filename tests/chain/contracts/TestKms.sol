// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.26;

/// What a boot looks like on the chain (dstack-protocol.md, E.7): the order of the fields is the format.
struct BootInfo {
    address appId;
    bytes32 composeHash;
    address instanceId;
    bytes32 deviceId;
    bytes32 mrAggregated;
    bytes32 mrSystem;
    bytes32 osImageHash;
    string tcbStatus;
    string[] advisoryIds;
}

interface IJudge {
    function isAppAllowed(BootInfo calldata boot) external view returns (bool, string memory);
}

/// A KMS contract for tests: the interface that dstack-auth calls, anybody may change it, and it can check that every
/// field of a question has arrived as it was sent.
contract TestKms is IJudge {
    string public gatewayAppId;
    address public appImplementation;
    mapping(address => bool) public apps;
    mapping(bytes32 => bool) public images;
    mapping(bytes32 => bool) public measurements;
    bytes32 private expected;

    function setGateway(string calldata id) external { gatewayAppId = id; }
    function setImplementation(address where) external { appImplementation = where; }
    function setApp(address app, bool yes) external { apps[app] = yes; }
    function setImage(bytes32 image, bool yes) external { images[image] = yes; }
    function setMeasurement(bytes32 measurement, bool yes) external { measurements[measurement] = yes; }

    /// Only a boot whose every field is this one is allowed; a zero hash switches that off.
    function expect(bytes32 hash) external { expected = hash; }

    function fingerprint(BootInfo calldata boot) public pure returns (bytes32) { return keccak256(abi.encode(boot)); }

    function isKmsAllowed(BootInfo calldata boot) external view returns (bool, string memory) {
        if (expected != 0 && fingerprint(boot) != expected) return (false, "not the expected boot");
        if (!images[boot.osImageHash]) return (false, "OS image is not allowed");
        if (!measurements[boot.mrAggregated]) return (false, "Aggregated MR not allowed");
        return (true, "");
    }

    function isAppAllowed(BootInfo calldata boot) external view returns (bool, string memory) {
        if (expected != 0 && fingerprint(boot) != expected) return (false, "not the expected boot");
        if (!apps[boot.appId]) return (false, "App not registered");
        if (!images[boot.osImageHash]) return (false, "OS image is not allowed");
        if (boot.appId.code.length == 0) return (false, "App not deployed or invalid address");
        return IJudge(boot.appId).isAppAllowed(boot);
    }
}

/// An app's own contract, well-behaved or not.
contract TestApp is IJudge {
    enum Mood { fair, silent, rude, reverting, endless, huge, panicking }
    Mood public mood;
    mapping(bytes32 => bool) public hashes;

    function setMood(Mood to) external { mood = to; }
    function setHash(bytes32 hash, bool yes) external { hashes[hash] = yes; }

    function isAppAllowed(BootInfo calldata boot) external view returns (bool, string memory) {
        if (mood == Mood.silent) return (false, "");
        if (mood == Mood.rude) return (false, unicode"nö\u0000\u001b[31m\n{\"isAllowed\":true}");
        if (mood == Mood.reverting) revert("closed on sundays");
        if (mood == Mood.panicking) assert(false);
        if (mood == Mood.endless) {
            uint256 x = 1;
            while (true) { unchecked { x = x * 3 + 1; } }
        }
        if (mood == Mood.huge) return (false, string(new bytes(900000)));
        if (!hashes[boot.composeHash]) return (false, "Compose hash not allowed");
        return (true, "");
    }
}
