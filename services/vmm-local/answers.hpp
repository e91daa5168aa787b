#pragma once
#include "services/vmm-local/config.hpp"
#include "services/vmm-local/image.hpp"
#include "services/vmm-local/manifest.hpp"
#include <string>
#include <vector>

namespace dstack::vmm
{

/// What a VM's entry in Status and GetInfo is made of.
struct VmView
{
    Manifest manifest;
    State state;
    bool running = false;
    bool removing = false;
    std::string instance_id;
    std::string image_version;
    bool with_configuration = false; ///< the next three are read only then
    std::string compose_file;
    std::string encrypted_env; ///< raw bytes
    std::string user_config;
};

// The JSON of prpc answers (A.3): every field, in proto order, compact.
std::string status_answer(const std::vector<VmView>& views, std::size_t total, bool port_mapping, std::uint64_t now_ms);
std::string info_answer(const VmView* view, std::uint64_t now_ms);
std::string images_answer(const std::vector<Image>& images);
std::string meta_answer(const Config& config);
std::string version_answer();
std::string id_answer(std::string_view id);
std::string hash_answer(std::string_view hash);
std::string reload_answer(std::uint32_t loaded, std::uint32_t updated, std::uint32_t removed);
std::string gpus_answer();

/// Status' filters and paging (B.9) over VMs in order of creation: the indexes to show, and how many matched.
struct Page
{
    std::vector<std::size_t> indexes;
    std::size_t total = 0;
};
Page select(const std::vector<const Manifest*>& all, const StatusRequest& request);

} // namespace dstack::vmm
